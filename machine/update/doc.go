// Package update replaces the OS of a machine that boots from slots: it writes
// the idle slot, boots it on trial, judges it twice, and keeps it or goes back,
// with nobody asking and nobody at hand.
//
//	Wanted -> Begin: slot written, sealed to, armed -> boot -> healthy for soak
//	       -> boot again, cold -> healthy for twice soak -> blessed -> hold lifted
//	       anything else                              -> old slot, old configuration
//
// [Decide] is the core: what a machine remembers of the trial (trial.json, on
// STATE) and what it sees give the next step. [Updater] does the steps. Each is
// recorded before it is made, and made again after a power cut; none is believed
// to have happened because it is recorded.
//
// It promises that the machine ends in a slot that is known to be good, whatever
// the new OS does and whenever the power goes; that an OS is blessed only after it
// was healthy, steadily, in two boots; that a refused one is not tried again with
// the same effect; and that OS and configuration go back together. What a release
// says of trust is none of its business and stays.
//
// It leaves out what healthy means (the caller observes), when an update may
// begin (windows, waves), and Kubernetes' own hold, for which it only says when
// (Hold).
package update
