package link

import (
	"testing"

	"github.com/holdfast-edge/holdfast/fleet"
)

func TestMachinePinIsThePinOfTheSameKey(t *testing.T) {
	spki := []byte("any key's SubjectPublicKeyInfo")
	got, err := MachinePin(fleet.MachineIDOf(spki))
	if err != nil || got != PinOf(spki) {
		t.Errorf("got %s, %v; want %s", got, err, PinOf(spki))
	}
	if _, err := MachinePin("short"); err == nil {
		t.Error("a short ID gives a pin")
	}
}
