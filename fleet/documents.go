package fleet

import (
	"net/netip"
	"time"
)

// The documents of a fleet repo, as people and tools write them. These structs
// are the one definition: the strict decoder, the layering and the JSON Schemas
// all read their tags (see plan.go), and the schemas carry these comments.

// APIVersion stands on top of every document.
const APIVersion = "holdfast.dev/v1alpha1"

// Header is what every document begins with.
type Header struct {
	// Which version of the format this is: holdfast.dev/v1alpha1.
	APIVersion string `yaml:"apiVersion" is:"required"`
	// What the document describes.
	Kind string `yaml:"kind" is:"required"`
	// Name, labels and notes; all of it optional, since the path names the document.
	Metadata Metadata `yaml:"metadata"`
}

// Metadata is what a document says about itself.
type Metadata struct {
	// The name; where it is given it must be what the path says.
	Name string `yaml:"name"`
	// Labels, for selectors such as country=de.
	Labels map[string]string `yaml:"labels"`
	// Notes for people and tools; nothing here reads them.
	Annotations map[string]string `yaml:"annotations"`
}

// FleetSpec is the spec of fleet.yaml: what holds for the whole fleet.
type FleetSpec struct {
	// The Fleet-ID, made once by holdfast init: 32 hex digits.
	ID ID `yaml:"id" is:"required fleetID"`
	// The edition of the rendering rules that this tree is written for.
	Edition int `yaml:"edition" min:"0" max:"0"`
	// Where machines dial.
	Hubs []Hub `yaml:"hubs"`
	// Where bytes can be had when the hub has none: https://, s3:// or oci:// places, trusted with nothing.
	Mirrors []string `yaml:"mirrors" is:"mirror"`
	// The variables that layers and sites may set.
	Vars map[string]VarDecl `yaml:"vars" keys:"varName"`
	// The lowest layer: what every site starts from.
	Defaults Layer `yaml:"defaults"`
}

// Hub is a place that machines dial; whether it is the right one is told by the pins in trust.yaml.
type Hub struct {
	// https://name or https://name:port
	URL string `yaml:"url" is:"required hubURL"`
}

// VarDecl declares a variable.
type VarDecl struct {
	// string, int, bool or list (of strings).
	Type string `yaml:"type" is:"required" enum:"string int bool list"`
	// The value where no layer sets one.
	Default any `yaml:"default"`
	// Every site must have a value.
	Required bool `yaml:"required"`
	// What it is for.
	Description string `yaml:"description"`
}

// Layer is what fleet defaults, classes, rings, sites and machines may all say.
// Later ones win: maps merge, scalars and lists replace, lists of named things
// merge by name, and "$delete: true" in place of a value removes it.
type Layer struct {
	// The ring that the site follows.
	Ring string `yaml:"ring" is:"label"`
	// Values of the variables that fleet.yaml declares.
	Vars map[string]any `yaml:"vars"`
	// The apps that run at the site.
	Apps []AppChoice `yaml:"apps" key:"name"`
	// Addresses and names.
	Network Network `yaml:"network"`
	// The cluster.
	Kubernetes Kubernetes `yaml:"kubernetes"`
	// The boxes.
	Machine MachineClass `yaml:"machine"`
}

// AppChoice selects an app, and says how the site differs from the app as written.
type AppChoice struct {
	// The app's folder under apps/.
	Name string `yaml:"name" is:"required label"`
	// false keeps a lower layer's app away from the site; true by default.
	Enabled *bool `yaml:"enabled"`
	// A version other than the ring's.
	Version string `yaml:"version" is:"version"`
	// Values for the app's chart or its substitutions; merged over those of lower layers.
	Values map[string]any `yaml:"values"`
	// Changes to the app's objects, each with a reason. One target has one patch: a later layer's merges into it.
	Patches []PatchChoice `yaml:"patches" key:"target"`
	// Objects to remove although they hold data; nothing else ever removes them.
	Delete []ObjectRef `yaml:"delete" key:"*"`
}

// PatchChoice changes one object of an app.
type PatchChoice struct {
	// The object.
	Target ObjectRef `yaml:"target" is:"required"`
	// Why this site differs; somebody will ask.
	Reason string `yaml:"reason" is:"required text"`
	// The change itself, as a merge patch.
	Merge map[string]any `yaml:"merge"`
	// Or a file with the change, in the site's own folder (site.yaml only).
	File string `yaml:"file" is:"path"`
}

// ObjectRef names a Kubernetes object.
type ObjectRef struct {
	// Such as apps/v1; may be left out where kind and name say enough.
	APIVersion string `yaml:"apiVersion" is:"text"`
	// Such as Deployment.
	Kind string `yaml:"kind" is:"required text"`
	// The object's namespace; the app's own when left out.
	Namespace string `yaml:"namespace" is:"label"`
	// The object's name.
	Name string `yaml:"name" is:"required text"`
}

// Network holds a site's addresses. The ranges are its own: two sites may use the same ones.
type Network struct {
	// Where the permanent addresses of machines come from. Default 10.213.0.0/24.
	SiteRange netip.Prefix `yaml:"siteRange"`
	// Where pod addresses come from. Default 10.214.0.0/16.
	PodRange netip.Prefix `yaml:"podRange"`
	// Where Service addresses come from. Default 10.215.0.0/16.
	ServiceRange netip.Prefix `yaml:"serviceRange"`
	// The one address on every machine that is the Kubernetes API. Default the first of siteRange.
	APIAddress netip.Addr `yaml:"apiAddress"`
	// Name servers upstream; what DHCP says when left out.
	DNS []netip.Addr `yaml:"dns"`
	// The cluster's domain. Default cluster.local.
	Domain string `yaml:"domain" is:"domain"`
	// The largest packet on the LAN; what the device says when left out.
	MTU int `yaml:"mtu" min:"1280" max:"9216"`
	// true when nobody but this site is on its LAN, so that machines need no tunnel between them.
	LANTrusted bool `yaml:"lanTrusted"`
	// Time servers; what DHCP says when left out.
	NTP []string `yaml:"ntp" is:"host"`
}

// Kubernetes holds what may differ between clusters.
type Kubernetes struct {
	// The minor, such as 1.36: what the OS image brings, not a choice of a layer.
	Version string `yaml:"-"`
	// Pods per machine. Default 110.
	MaxPods int `yaml:"maxPods" min:"8" max:"500"`
	// The disks are slow (eMMC, SD): etcd waits longer before it calls a member lost.
	DiskSlow bool `yaml:"diskSlow"`
}

// MachineClass holds what may differ between boxes.
type MachineClass struct {
	// tpm (the default): the identity key does not leave the TPM; none: it is a file.
	Protection string `yaml:"protection" enum:"tpm none"`
	// Machines with protection none get secrets all the same.
	SecretsUnprotected bool `yaml:"secretsUnprotected"`
	// amd64 (the default) or arm64.
	Architecture string `yaml:"architecture" enum:"amd64 arm64"`
	// Size of STATE, where etcd and the machine's own state live. Default 2Gi.
	StateSize Quantity `yaml:"stateSize" min:"268435456"`
	// Size of DATA, where app images and volumes live. Default 16Gi; on metal all that is left when it is 0.
	DataSize Quantity `yaml:"dataSize" min:"0"`
	// The network ports that it uses, and VLANs on them. DHCP on every port when there is none. Hosted machines have what their host gives them.
	Interfaces []Interface `yaml:"interfaces" key:"name"`
	// The CONNECT proxy on the way to the hub, such as http://proxy.example.com:3128.
	Proxy string `yaml:"proxy" is:"proxy"`
	// How another OS is judged before it is kept.
	Update OSTrial `yaml:"update"`
	// Which of its disks it lives on. The only one that fits when nothing is said. Hosted machines have files of their host.
	Disk DiskRule `yaml:"disk"`
}

// DiskRule chooses the disk that a machine lives on, and is asked when it has none yet: at its first boot from a stick, or
// with another disk. A blank one is taken before one that holds something, and one that is the machine's already is kept
// whatever the rule says. Before its first release a machine has the rule that its OS image was built with (holdfast os build
// --class); where that one decides on no disk, it asks its release.
type DiskRule struct {
	// The disk's model as it tells it, whole, in which * stands for any text: Samsung SSD 980*.
	Model string `yaml:"model" json:"model,omitempty" is:"pattern"`
	// Its serial number, likewise.
	Serial string `yaml:"serial" json:"serial,omitempty" is:"pattern"`
	// Where it is plugged in, below /sys/devices, likewise: *0000:01:00.0/nvme*. It is the same as long as the cable stays. Without model, serial or path
	// no removable disk is taken, and none on USB.
	Path string `yaml:"path" json:"path,omitempty" is:"pattern"`
	// Smaller ones are not taken, such as 100Gi.
	MinSize Quantity `yaml:"minSize" json:"minSize,omitempty" min:"0"`
	// Larger ones are not taken; 0 for any.
	MaxSize Quantity `yaml:"maxSize" json:"maxSize,omitempty" min:"0"`
	// smallest or largest of those that fit. When left out, one only may fit: a machine does not guess.
	BySize string `yaml:"bySize" json:"bySize,omitempty" enum:"smallest largest"`
	// Erase what is not Holdfast's on the disk, where no blank one fits. A foreign disk is never touched otherwise.
	Wipe bool `yaml:"wipe" json:"wipe,omitempty"`
}

// OSTrial says how a machine judges another OS: it boots it twice, the second time cold, and goes back unless it is well.
type OSTrial struct {
	// How long each boot may take to become healthy. Default 10m.
	Deadline time.Duration `yaml:"deadline"`
	// How long it must be healthy in one go, and twice as long in the second boot. Default 1m.
	Soak time.Duration `yaml:"soak"`
}

// Interface is a network port of a machine, or a VLAN on one.
type Interface struct {
	// What other interfaces and reports call it.
	Name string `yaml:"name" is:"required label"`
	// Which port: its hardware address (52:54:00:12:34:56), the name of its driver (virtio_net) or of the kernel for it (eth0),
	// or * for all that no other interface takes. The kernel's name is the interface's own when left out; a VLAN has none.
	Match string `yaml:"match" is:"port"`
	// Ask for an address. Without addresses and without DHCP the port is only switched on, for VLANs.
	DHCP bool `yaml:"dhcp"`
	// Fixed addresses with the length of their network, such as 192.168.1.10/24.
	Addresses []string `yaml:"addresses" is:"hostAddress"`
	// The default route, through one of the networks of addresses.
	Gateway netip.Addr `yaml:"gateway"`
	// The VLAN that it is.
	VLAN VLAN `yaml:"vlan"`
	// The largest packet; what the site's network says, or the device, when left out.
	MTU int `yaml:"mtu" min:"1280" max:"9216"`
}

// VLAN is a tagged network on another interface.
type VLAN struct {
	// Its number; 0 for none.
	ID int `yaml:"id" min:"0" max:"4094"`
	// The name of the interface that carries it.
	Of string `yaml:"of" is:"label"`
}

// NetworkSpec is the spec of network.yaml, which lies on a stick or on the boot partition: how a machine
// reaches its hub before a release says so. It is not signed: it can misroute, not misrule.
type NetworkSpec struct {
	// The network ports that it uses, and VLANs on them. DHCP on every port when there is none.
	Interfaces []Interface `yaml:"interfaces" key:"name"`
	// The CONNECT proxy on the way to the hub, such as http://proxy.example.com:3128.
	Proxy string `yaml:"proxy" is:"proxy"`
	// Name servers; what DHCP says when left out.
	DNS []netip.Addr `yaml:"dns"`
	// Time servers; what DHCP says when left out.
	NTP []string `yaml:"ntp" is:"host"`
	// Where the hubs really are, host:port, in place of what their URLs say.
	Hubs []string `yaml:"hubs" is:"hostPort"`
}

// ClassSpec is the spec of classes/GROUP/NAME.yaml, a layer that sites list.
type ClassSpec struct {
	Layer `yaml:",inline"`
}

// RingSpec is the spec of rings/NAME.yaml: what is live where.
type RingSpec struct {
	// The OS image version; left out when every machine of the ring is hosted.
	OS string `yaml:"os" is:"version"`
	// The live version of each app.
	Apps map[string]string `yaml:"apps" is:"version" keys:"label"`
	// Who gets a release first.
	Waves []Wave `yaml:"waves"`
	// When a roll-out stops by itself.
	StopAfter StopAfter `yaml:"stopAfter"`
	// How long a wave is watched before the next.
	Soak time.Duration `yaml:"soak"`
	// When changes may happen, in the site's zone; always when there is none.
	Windows []Window `yaml:"windows"`
	// When nothing may change.
	Freezes []Freeze `yaml:"freezes"`
	// What the sites of this ring have in common.
	Defaults Layer `yaml:"defaults"`
}

// Wave is a part of a ring's sites.
type Wave struct {
	// What people call it.
	Name string `yaml:"name" is:"required label"`
	// Folders under sites/ (de, de/0417-berlin) or labels (country=de); all sites when left out.
	Sites []string `yaml:"sites" is:"selector"`
	// At most so many sites; all that match when left out.
	Count int `yaml:"count" min:"1"`
}

// StopAfter says when a roll-out stops by itself.
type StopAfter struct {
	// So many sites that failed. Default 1.
	Failures int `yaml:"failures" min:"1"`
}

// Window is a time of the week in which changes may happen.
type Window struct {
	// mon tue wed thu fri sat sun; every day when left out.
	Days []string `yaml:"days" enum:"mon tue wed thu fri sat sun"`
	// Its begin, such as 22:00.
	From string `yaml:"from" is:"required clock"`
	// Its end, such as 05:00; the next day where it is before the begin.
	To string `yaml:"to" is:"required clock"`
}

// Freeze is a span of days in which nothing may change.
type Freeze struct {
	// The first day, such as 2026-11-20.
	From string `yaml:"from" is:"required date"`
	// The last day.
	To string `yaml:"to" is:"required date"`
	// Why.
	Reason string `yaml:"reason"`
}

// SiteSpec is the spec of site.yaml, which people write.
type SiteSpec struct {
	// What stays the same when the folder moves.
	UID string `yaml:"uid" is:"required uid"`
	// Classes, the later ones win.
	Layers []string `yaml:"layers" is:"className"`
	// What differs on single machines of the site.
	Machines []MachineLayer `yaml:"machines" key:"name"`
	Layer    `yaml:",inline"`
}

// MachineLayer is the last layer: one machine.
type MachineLayer struct {
	// The machine's name in machines.yaml.
	Name string `yaml:"name" is:"required label"`
	// How this box differs.
	Machine MachineClass `yaml:"machine" layer:"true"`
}

// MachinesSpec is the spec of machines.yaml, which tools write.
type MachinesSpec struct {
	// The machines of the site.
	Members []Machine `yaml:"members"`
	// The machines that were.
	Tombstones []Tombstone `yaml:"tombstones"`
}

// Machine is a member of a site.
type Machine struct {
	// What people call it, unique in the site.
	Name string `yaml:"name" is:"required label"`
	// The fingerprint of its identity key.
	ID MachineID `yaml:"id" is:"required machineID"`
	// control-plane or worker.
	Role string `yaml:"role" is:"required" enum:"control-plane worker"`
	// Its permanent address, from the site's siteRange.
	SiteAddress netip.Addr `yaml:"siteAddress" is:"required"`
	// What secrets for it are encrypted to (age).
	Recipient string `yaml:"recipient" is:"recipient"`
	// tpm or none.
	Protection string `yaml:"protection" enum:"tpm none"`
	// It was adopted without proof that it is the box that somebody meant.
	Unverified bool `yaml:"unverified"`
	// What it said of itself, signed by its identity key (base64).
	Introduction string `yaml:"introduction" is:"base64"`
}

// Tombstone stands for a machine that left. It is never removed: an id does not come back.
type Tombstone struct {
	// The fingerprint of its identity key.
	ID MachineID `yaml:"id" is:"required machineID"`
	// retire (gracefully) or stolen (at once, all keys of the site made anew).
	Verb string `yaml:"verb" is:"required" enum:"retire stolen"`
	// The day that it left, such as 2026-11-20.
	Since string `yaml:"since" is:"date"`
}

// AppSpec is the spec of apps/NAME/app.yaml.
type AppSpec struct {
	// The namespace of its objects; the app's name when left out.
	Namespace string `yaml:"namespace" is:"label"`
	// Apps that must be there first; a site that selects this one selects them too.
	Needs []string `yaml:"needs" is:"label"`
	// An OS update is judged by this app, too.
	Critical bool `yaml:"critical"`
	// What a failed update of it leads to. Default undo-app.
	OnFailure string `yaml:"onFailure" enum:"undo-app undo-release report"`
	// How long it may take to become healthy. Default 10m.
	Deadline time.Duration `yaml:"deadline"`
	// Host devices that its pods see.
	Devices []string `yaml:"devices" is:"device"`
	// Files of a version in which ${vars.x} is replaced.
	Substitute []string `yaml:"substitute" is:"glob"`
	// Pod Security level of its namespace. Default baseline.
	PodSecurity string `yaml:"podSecurity" enum:"privileged baseline restricted"`
}

// OSSpec is the spec of os/VERSION.yaml; such a file is never edited.
type OSSpec struct {
	// The Kubernetes minor inside, such as 1.36.
	Kubernetes string `yaml:"kubernetes" is:"required minor"`
	// The OS versions that it may follow; any when left out.
	Follows []string `yaml:"follows" is:"version"`
	// The editions that it renders.
	Editions []int `yaml:"editions"`
	// The image of each architecture.
	Images map[string]OSImage `yaml:"images" keyEnum:"amd64 arm64"`
}

// OSImage is what a machine of one architecture boots.
type OSImage struct {
	// sha256: and 64 hex digits.
	Digest string `yaml:"digest" is:"required digest"`
	// In bytes.
	Size int64 `yaml:"size" is:"required" min:"1"`
}

// ImagesLockSpec is the spec of apps/NAME/VERSION/images.lock, which holdfast lock writes.
type ImagesLockSpec struct {
	// One line for each app image that the version's manifests name.
	Images []LockedImage `yaml:"images"`
}

// LockedImage binds the name of an app image to its bytes.
type LockedImage struct {
	// registry/repository:tag, as the manifests have it.
	Name string `yaml:"name" is:"required image"`
	// sha256: and 64 hex digits.
	Digest string `yaml:"digest" is:"required digest"`
	// All its bytes, compressed.
	Size int64 `yaml:"size" min:"0"`
	// Such as linux/amd64.
	Platforms []string `yaml:"platforms" is:"platform"`
}

// TrustSpec is the spec of trust.yaml: who may do what.
type TrustSpec struct {
	// R: rises by one with each change.
	Version uint64 `yaml:"version" is:"required" min:"1"`
	// How many distinct people must sign. Default 1.
	Threshold int `yaml:"threshold" min:"1"`
	// Who may sign releases, promotions and heartbeats.
	Signers []Signer `yaml:"signers" is:"required"`
	// Who may open sessions to machines, clusters and the hub.
	Operators []Operator `yaml:"operators"`
	// The keys of the hubs.
	Hubs []HubKey `yaml:"hubs"`
	// Who can read what recovers the fleet (age recipients).
	Recovery []string `yaml:"recovery" is:"recipient"`
}

// Signer is a key that signs for the fleet.
type Signer struct {
	// The key's name, unique.
	Name string `yaml:"name" is:"required text"`
	// Whose key it is; thresholds count people. The name when left out.
	Person string `yaml:"person" is:"text"`
	// A line as in an OpenSSH .pub file: ed25519, ecdsa-p256 or their sk- forms.
	Key string `yaml:"key" is:"required sshKey"`
	// release, promote, heartbeat.
	Roles []string `yaml:"roles" is:"required" enum:"release promote heartbeat"`
	// Releases older than this do not count.
	From *time.Time `yaml:"from"`
	// Releases younger than this do not count.
	Until *time.Time `yaml:"until"`
}

// Operator is a key that opens sessions.
type Operator struct {
	// The key's name, unique.
	Name string `yaml:"name" is:"required text"`
	// Whose key it is. The name when left out.
	Person string `yaml:"person" is:"text"`
	// A line as in an OpenSSH .pub file: ed25519, ecdsa-p256 or their sk- forms.
	Key string `yaml:"key" is:"required sshKey"`
	// operate, admin, read.
	Roles []string `yaml:"roles" is:"required" enum:"operate admin read"`
	// Folders under sites/ (de, de/0417-berlin) or labels (country=de); all sites when left out.
	Sites []string `yaml:"sites" is:"selector"`
	// Not before.
	From *time.Time `yaml:"from"`
	// Not after.
	Until *time.Time `yaml:"until"`
}

// HubKey pins a hub.
type HubKey struct {
	// The key's name, unique.
	Name string `yaml:"name" is:"required text"`
	// sha256: and the hex digest of the key's SubjectPublicKeyInfo.
	Pin string `yaml:"pin" is:"required digest"`
	// active or spare.
	Role string `yaml:"role" is:"required" enum:"active spare"`
}
