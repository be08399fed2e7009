// Package clock sets a machine's clock, and does not let a lie last.
//
// There is a floor: the OS image's build time and the newest signed time. It
// promises that the clock is never below it, and that nothing unsigned raises it.
// Time servers and the hardware clock are unsigned: they set the clock above the
// floor only; a step of more than a day needs two sources that agree and no
// more than agree on something else; and what they set may be set back later.
//
// [Decide] is the whole judgement and reads no clock. It leaves out
// authenticated NTP, and who sets windows by the time: they ask [State].
package clock
