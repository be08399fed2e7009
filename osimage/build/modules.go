package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/osimage/debian"
	"github.com/holdfast-edge/holdfast/osimage/kmod"
	"github.com/holdfast-edge/holdfast/osimage/kmod/modinfo"
)

// Modules of the kernel. A question mark: not on every architecture or flavour.
// What a machine's hardware asks for by alias, beyond these lists, is loaded if
// it is there, and what is there is what is named here or in a profile.
var (
	// stage1 opens the root, and tells which disk the firmware started.
	stage1 = []string{"virtio_blk", "erofs", "sha256_ssse3?", "sha2-ce?", "sha256-arm64?", "dm_verity", "efivarfs", "i6300esb?"}
	// controllers are what the root's disk may hang on, and watchdogs: loaded in
	// stage 1 by the hardware that is there.
	controllers = []string{"virtio_scsi", "sd_mod", "nvme", "ahci", "virtio_mmio?"}
	// controllersBare are those of bare machines, sticks included.
	controllersBare = []string{
		"xhci_pci", "xhci_plat_hcd?", "ehci_pci?", "usb_storage", "uas", "mmc_block", "sdhci_pci", "sdhci_acpi?", "vmd?", "iTCO_wdt?", "sp5100_tco?",
		"sdhci_iproc?", "dw_mmc_rockchip?", "phy_rockchip_naneng_combphy?", "pcie_brcmstb?",
	}

	// onRoot is loaded when the root is there: Kubernetes' network loads slowly
	// one by one (OS.md: the kernel replays a whole nft batch for each missing
	// module), so all of it comes first.
	onRoot = []string{
		// Devices of virtual machines; those of bare ones come by alias.
		"virtio_net", "virtio_rng", "i6300esb?", "tpm_tis?", "tpm_crb?", "button?", "qemu_fw_cfg?",
		// The ESP, and STATE and DATA.
		"vfat", "nls_cp437", "nls_ascii", "ext4",
		"dm_crypt", "xts", "cryptd?", "aesni_intel?", "aes-ce-blk?",
		"zram", "lz4", "zstd",
		// Containers.
		"overlay", "fuse?",
		"veth", "vxlan", "wireguard",
		"nf_tables", "nf_conntrack", "nf_conntrack_netlink", "nf_nat", "nfnetlink",
		"nft_chain_nat", "nft_nat", "nft_masq", "nft_redir", "nft_ct", "nft_fib", "nft_fib_inet", "nft_fib_ipv4", "nft_fib_ipv6",
		"nft_reject", "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6",
		"nft_log", "nf_log_syslog", "nft_limit", "nft_numgen", "nft_hash", "nft_objref?",
	}
	// atHand is what pods and networks may ask for by alias.
	atHand = []string{
		"xt_comment?", "nft_compat", "xt_mark", "xt_conntrack", "xt_MASQUERADE", "xt_addrtype", "xt_nat?", "xt_tcpudp", "xt_multiport", "xt_statistic", "xt_LOG",
		"sch_fq?", "sch_fq_codel?", "sch_ingress", "sch_htb", "sch_tbf", "cls_u32", "cls_bpf", "act_bpf", "act_mirred", "tcp_bbr",
		"macvlan", "ipvlan", "nft_flow_offload", "nf_flow_table", "nf_flow_table_inet", "sctp", "tcp_diag", "udp_diag",
		"virtio_balloon", "bridge", "br_netfilter", "dummy", "8021q", "bonding", "tun", "nft_queue", "nft_quota", "nft_connlimit", "nft_tproxy", "nft_socket", "softdog?",
	}
	// bare is what machines without a hypervisor need: network cards of the usual
	// boards, watchdogs, sensors, keyboards that nobody reads.
	bare = []string{
		"e1000e", "igb", "igc", "ixgbe", "i40e", "ice", "r8169", "realtek", "tg3", "bnxt_en", "atlantic", "mlx5_core", "mlx4_en", "alx?", "sky2?", "forcedeth?", "r8152", "ax88179_178a", "cdc_ether", "asix", "smsc95xx", "lan78xx?",
		"ipmi_si?", "ipmi_devintf?", "ipmi_watchdog?", "softdog", "wdat_wdt?", "sp805_wdt?", "sbsa_gwdt?",
		"coretemp?", "k10temp?", "intel_rapl_msr?", "acpi_cpufreq?", "processor_thermal_device_pci?", "rtc_efi?",
		"megaraid_sas", "mpt3sas", "hpsa", "aacraid", "smartpqi",
		"bcmgenet?", "genet?", "stmmac_platform?", "dwmac_rk?", "macb?", "mvneta?", "mvpp2?", "fsl_dpaa2_eth?", "hns3?", "thunder_nic?",
		"bcm2835_wdt?",
	}
)

// initramfs lists the modules of stage 1: to load, and to have there for hardware.
func (p Profile) initramfs() (load, have []string) {
	if p.Flavour == Generic {
		return stage1, slices.Concat(controllers, controllersBare)
	}
	return stage1, controllers
}

// root lists the modules of the root likewise.
func (p Profile) root() (load, have []string) {
	_, disks := p.initramfs()
	have = slices.Concat(stage1, disks, atHand)
	if p.Flavour == Generic {
		have = slices.Concat(have, bare)
	}
	return slices.Concat(onRoot, p.Drivers), have
}

// kernel is what is taken from a kernel's package.
type kernel struct {
	release string            // as uname -r says it
	image   []byte            // vmlinuz
	files   map[string][]byte // modules by the path below their folder
	set     *modinfo.Set
}

const moduleFolder = "usr/lib/modules/"

// readKernel unpacks a kernel and learns its modules. Learning them means to
// decompress each, so that is kept beside the package.
func readKernel(ctx context.Context, cache *debian.Cache, p debian.Package) (*kernel, error) {
	a, err := cache.Open(ctx, p)
	if err != nil {
		return nil, err
	}
	k := &kernel{files: map[string][]byte{}}
	var builtIn []byte
	err = a.Each(func(string) bool { return true }, func(f debian.File) error {
		switch {
		case strings.HasPrefix(f.Name, "boot/vmlinuz-"):
			k.image, k.release = f.Data, strings.TrimPrefix(f.Name, "boot/vmlinuz-")
		case path.Base(f.Name) == "modules.builtin":
			builtIn = f.Data
		case strings.HasPrefix(f.Name, moduleFolder) && strings.Contains(path.Base(f.Name), ".ko"):
			_, name, _ := strings.Cut(strings.TrimPrefix(f.Name, moduleFolder), "/")
			k.files[name] = f.Data
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if k.image == nil || builtIn == nil || len(k.files) == 0 {
		return nil, fmt.Errorf("the Debian package %s %s is no kernel: it has no vmlinuz, no list of built-in modules, or no modules", p.Name, p.Version)
	}
	kept := filepath.Join(cache.Dir, fmt.Sprintf("%s_%s.%s.modinfo-1.json", p.Name, p.Architecture, p.SHA256[:16]))
	switch err := durable.ReadJSON(kept, &k.set); {
	case err == nil && k.set.Kernel == k.release && len(k.set.Modules) == len(k.files):
		return k, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist) && cache.Progress != nil:
		cache.Progress(fmt.Sprintf("%v; reading the modules again", err))
	}
	if cache.Progress != nil {
		cache.Progress(fmt.Sprintf("read what %d modules of kernel %s need (once)", len(k.files), k.release))
	}
	if k.set, err = learn(ctx, k.release, k.files, builtIn); err != nil {
		return nil, err
	}
	return k, durable.WriteJSON(kept, k.set, 0o644)
}

func learn(ctx context.Context, release string, files map[string][]byte, builtIn []byte) (*modinfo.Set, error) {
	set := &modinfo.Set{Kernel: release, Modules: map[string]modinfo.Info{}, BuiltIn: modinfo.BuiltIn(builtIn)}
	var lock sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for name, data := range files {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			info, err := modinfo.Parse(name, data)
			if err != nil {
				return err
			}
			lock.Lock()
			defer lock.Unlock()
			set.Modules[kmod.Name(name)] = info
			return nil
		})
	}
	return set, g.Wait()
}

// addModules puts the modules of an index below a folder of the tree, with the
// index. What is loaded at each boot is unpacked: the kernel takes longer for its
// xz than for all else of the load, and updates of packed files share nothing.
func addModules(t *tree, folder string, k *kernel, x *kmod.Index, from string) error {
	plain := map[string]bool{}
	for _, name := range x.Order() {
		plain[name] = true
	}
	for name, m := range x.Modules {
		data, ok := k.files[m.File]
		if !ok {
			return fmt.Errorf("kernel module %s: no file %s", name, m.File)
		}
		if plain[name] {
			var err error
			if data, err = modinfo.Unpack(m.File, data); err != nil {
				return fmt.Errorf("kernel module %s: %w", name, err)
			}
			m.File = strings.TrimSuffix(strings.TrimSuffix(m.File, ".xz"), ".zst")
			x.Modules[name] = m
		}
		t.add(entry{path: path.Join(folder, m.File), data: data, from: from})
	}
	data, err := json.Marshal(x)
	if err != nil {
		return err
	}
	t.add(entry{path: path.Join(folder, kmod.FileName), data: append(data, '\n'), from: ours})
	return nil
}

// cacheOrDefault is the cache that the options name.
func cacheOrDefault(c *debian.Cache, l *debian.Lock, say func(string)) (*debian.Cache, error) {
	var own debian.Cache
	if c != nil {
		own = *c
	}
	if own.Dir == "" {
		dir, err := debian.CacheDir()
		if err != nil {
			return nil, err
		}
		own.Dir = dir
	}
	if own.Progress == nil {
		own.Progress = say
	}
	own.Snapshot = l.Snapshot
	return &own, os.MkdirAll(own.Dir, 0o755)
}
