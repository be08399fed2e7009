// Package hosted runs a machine inside the namespaces of an ordinary Linux host, as root: for lab, tests, trials, and as a bridge.
//
// There are two sides. The outer process (Run) stays in the host's namespaces: it makes the machine's disk images, its control group and its network
// interface, starts the program again as process 1 of new namespaces, and starts it once more whenever it dies. The inner process calls EnterInner first
// thing: it builds the machine's own file system tree and finds itself on a machine of its own.
//
//	/            tmpfs; /usr /bin /sbin /lib* of the host read-only; own /etc
//	/state       ext4 in ROOT/state.img: etcd, keys, the machine's memory; a ballast file
//	/data        ext4 in ROOT/data.img: containerd, kubelet and logs, seen at /var/lib/containerd, /var/lib/kubelet, /var/log
//	/opt/holdfast  the programs, read-only
//	/run         tmpfs: worthless after a restart on purpose
//
// It promises: nothing of it is left on the host once Run has returned, no mount, control group, interface or loop device; the same is true soon after
// SIGKILL of everything, but for empty control groups, which the next Run or Clean removes. At no instant does SIGKILL of either process, or of mkfs, damage
// anything: images appear by rename, and each is locked by its own loop device, so that no second mount of it can happen while the first still ends.
// The host's kernel settings are not touched: the inner sees them read-only, with plain files where kubelet insists on writing.
//
// It leaves out: boot, disks, kernel settings and user namespaces. A privileged pod is root on the host.
package hosted
