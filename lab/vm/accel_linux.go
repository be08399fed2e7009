package vm

// Accel is how the guest's processor is made.
type Accel string

// The accelerators.
const (
	TCG Accel = "tcg" // translated: everywhere, some 10 times slower
	KVM Accel = "kvm"
)
