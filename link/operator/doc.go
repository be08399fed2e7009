// Package operator lets people act on hubs and machines with their SSH keys, end
// to end.
//
// An operator signs once: which fleet, which target, which client key, which
// roles, on which connection. The target honours that client key for an hour of
// its own uptime and judges it again by its current trust at every request. So
// a signature is worth nothing to another target, on another connection, or to
// the hub through which it passed, and a revoked operator is cut off by the
// release that revokes.
//
// [Authority] is the target's side, as HTTP middleware; [Open] is the operator's.
// The package leaves out what the roles permit: that is for who serves a path to
// say, with [Require] and [Grant.Allows].
package operator
