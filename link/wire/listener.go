package wire

// Listener is a port on which a machine hears strangers, as far as its packet
// filter lets them come.
type Listener struct {
	Protocol string `json:"protocol"` // tcp or udp
	Address  string `json:"address"`  // 0.0.0.0 and :: are all of the machine's
	Port     uint16 `json:"port"`
	Program  string `json:"program,omitempty"` // pods: one in the machine's own network; empty: the kernel's own
}
