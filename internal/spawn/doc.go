// Package spawn starts child processes so that they die with their parent, are born in their cgroup, and are never reaped by the wrong waiter.
//
// Three kernel rules meet here. The parent death signal is tied to the *thread* that forked, so one thread that never ends does all the forking. A version 1
// cgroup is inherited from that same thread. And process 1 inherits every orphan, but a reaper that waits for "any child" would take the exit codes that
// others wait for: so each child started here is on a list, and Reap touches only what is not. Programs that may run as process 1 start every child here.
package spawn
