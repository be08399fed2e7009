package release

// Limits bounds everything that is decoded from outside. A machine has 512 MiB in all; a hub keeps many releases.
type Limits struct {
	Tag        int   // bytes of a tag object with its signature
	Message    int   // bytes of a release's message
	Signature  int   // bytes of one armored signature
	Signatures int   // further signatures beside a tag
	Steps      int   // changes of trust in one slice
	Trust      int   // bytes of one trust.yaml
	Object     int   // bytes of one file or one folder listing
	Entries    int   // names in one folder
	Name       int   // bytes of one name
	Depth      int   // folders below each other
	Objects    int   // objects in one slice
	Slice      int   // bytes of one encoded slice
	Bundle     int64 // bytes of one encoded bundle
	BundleObjs int   // objects in one bundle
}

// DefaultLimits are the bounds that all machines and hubs share; a release that passes one is refused when it is made.
func DefaultLimits() Limits {
	return Limits{
		Tag:        64 << 10,
		Message:    32 << 10,
		Signature:  4 << 10,
		Signatures: 32,
		Steps:      256,
		Trust:      1 << 20,
		Object:     8 << 20,
		Entries:    100_000,
		Name:       255,
		Depth:      24,
		Objects:    50_000,
		Slice:      32 << 20,
		Bundle:     4 << 30,
		BundleObjs: 2_000_000,
	}
}
