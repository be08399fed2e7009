// Package link is the road between machines, hubs and operators: the machine
// dials out, the hub serves back.
//
// A [Session] is one TLS 1.3 connection whose two ends have shown raw pinned
// keys, cut into streams. Both ends open and accept streams and speak plain
// HTTP on them ([ServeHTTP], [Client]). Each [Class] of traffic is a connection
// of its own, so that a call never waits behind bulk. A [Keeper] keeps the
// control session of a machine alive and dials the others on demand.
//
//	machine                                  hub
//	Keeper -> Dial -> TLS 1.3, ALPN class -> Gate -> ClientHello -> Handshake -> Serve
//	Session.Accept  <--- streams --->        Session.Open
//
// It promises: who a peer is, is decided by the SHA-256 of its public key and
// by nothing else; no tickets, no early data, no resumption; bounded memory,
// bytes and time for whoever has not shown a known key; a peer that vanished
// is noticed within [SilenceLimit]; Close leaves no goroutine behind.
//
// It leaves out: what is said on the streams (link/wire), who may operate
// (link/operator), and what a release is. It knows fleet and machine IDs only.
package link
