// Package supervise keeps a set of child processes running: in order, with back-off, with their last words at hand.
//
// Use: New with a Config, Apply with the children that should run (again whenever that changes), Run until its context ends. Status, Changed and WaitReady
// show what is; Restart stops and starts one child.
//
// It promises:
//   - A child starts when those in its After list are ready, also when it starts again. On the way down nobody stops before those that come after it.
//   - An unexpected end, exit code 0 included, is followed by a restart after a pause that doubles from Backoff.Min to Backoff.Max and starts anew once the
//     child has run for Backoff.Reset. An asked-for restart has no pause and counts as no failure.
//   - Each end of a process is seen once, with what it last wrote.
//   - A child that crashes again and again is marked (Status.CrashLoop) and never given up: what to do about it is the caller's decision.
//   - A child dies with this process. Its own children do not when it alone dies: container shims live on through a restart of containerd.
//   - As process 1 it buries orphans, and takes no exit code that anybody else in the program waits for (see package spawn).
//   - A log file is bounded; a full disk costs log lines, never a child.
//
// The deciding half (core.go) reads no clock and starts nothing: events in, effects out. It leaves out health after the first readiness, resource limits, and
// scheduled jobs.
package supervise
