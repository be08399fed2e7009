package wire

// Memory is how much there is and who has it, in bytes.
type Memory struct {
	Total     int64 `json:"total"`     // what the kernel can give away (MemTotal of proc(5))
	Available int64 `json:"available"` // what a new program could get without swapping (MemAvailable)
	Kernel    int64 `json:"kernel"`    // of it what the kernel cannot give back: unreclaimable slabs, stacks, page tables
	Swap      int64 `json:"swap,omitempty"`
	Swapped   int64 `json:"swapped,omitempty"`
	// Compressed is the memory that swapped pages take where they are kept in
	// memory (zram), which is part of the used.
	Compressed int64     `json:"compressed,omitempty"`
	Programs   []Program `json:"programs"` // the largest first
}

// Program is all processes of one program. Pages that processes share are divided
// among them (the proportional set size of proc(5)), so that sums mean something.
type Program struct {
	Name      string `json:"name"` // such as kube control-plane; pods: of all containers
	Processes int    `json:"processes"`
	Anonymous int64  `json:"anonymous"` // its own data; stays until it ends, or is swapped
	Files     int64  `json:"files"`     // its code and what it maps; can be read again
	Swapped   int64  `json:"swapped,omitempty"`
}
