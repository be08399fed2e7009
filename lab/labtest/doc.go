// Package labtest is what tests of whole sites share: a fleet of its own with a
// lab of one site, driven by the holdfast program as people drive it, with nothing
// of the person who tests. It promises that the lab is down when the test ends, and
// that a test which failed shows what a person would look at. What is told of the
// site it leaves to the tests.
package labtest
