package cli

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
)

// accessOptions are the flags of kubeconfig and kubectl.
type accessOptions struct {
	address string // of a machine on its LAN, host:port; "": through the hub
	life    time.Duration
	file    string
}

func (e *env) accessFlags(cmd *cobra.Command, o *accessOptions) {
	flags := cmd.Flags()
	flags.StringVar(&o.address, "lan", "", "reach the site at this address of a machine (host or host:port) instead of through the hub")
	flags.DurationVar(&o.life, "valid-for", time.Hour, "how long the credential is good, at most 24h")
	flags.StringVar(&e.hub, "hub", "", "address of the hub, host:port, instead of fleet.yaml's")
	flags.StringVar(&e.key, "key", "", "SSH key of an operator")
}

func (e *env) kubeconfig() *cobra.Command {
	var o accessOptions
	cmd := &cobra.Command{
		Use:     "kubeconfig SITE",
		Short:   "get access to a site's Kubernetes, for any kubectl or helm",
		GroupID: "sites",
		Long: `Kubeconfig asks a machine of the site itself, end to end through the hub or on its LAN,
for a client certificate in your name, and prints a kubeconfig. The hub passes bytes on
and can neither read nor use it. What you may do stands in trust.yaml: the next release
can take it away at once.`,
		Example:           "  holdfast kubeconfig berlin-0417 > berlin.yaml\n  KUBECONFIG=berlin.yaml helm list -A",
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: e.completeSites,
		RunE: func(c *cobra.Command, a []string) error {
			config, err := e.access(c.Context(), a[0], o)
			if err != nil {
				return err
			}
			if o.file != "" {
				return durable.WriteFile(o.file, config, 0o600)
			}
			_, err = e.out.Write(config)
			return err
		},
	}
	e.accessFlags(cmd, &o)
	cmd.Flags().StringVar(&o.file, "file", "", "write it here, mode 0600, instead of printing it")
	return cmd
}

func (e *env) kubectl() *cobra.Command {
	var o accessOptions
	cmd := &cobra.Command{
		Use:     "kubectl SITE [flags of kubectl...]",
		Short:   "run kubectl at a site",
		GroupID: "sites",
		Long: `Kubectl gets a credential as holdfast kubeconfig does and runs kubectl with it: the one
beside this program (bin/system/kube), else the one on the PATH. What follows SITE is
kubectl's; our own flags come before it.`,
		Example:           "  holdfast kubectl berlin-0417 get pods -A",
		ValidArgsFunction: e.completeSites,
		RunE:              func(c *cobra.Command, a []string) error { return e.runKubectl(c.Context(), a, o) },
	}
	e.accessFlags(cmd, &o)
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (e *env) runKubectl(ctx context.Context, a []string, o accessOptions) error {
	if len(a) == 0 {
		return &Error{Err: errors.New("name a site"), Hint: "holdfast kubectl SITE get pods -A", Code: CodeUsage}
	}
	path, first, err := kubectlProgram()
	if err != nil {
		return err
	}
	config, err := e.access(ctx, a[0], o)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp("", "holdfast-*.kubeconfig") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	if _, err = file.Write(config); err == nil {
		err = file.Close()
	}
	if err != nil {
		return fmt.Errorf("write a kubeconfig: %w", err)
	}
	cmd := exec.CommandContext(ctx, path, append(first, a[1:]...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = e.in, e.out, e.err
	cmd.Env = append(os.Environ(), "KUBECONFIG="+file.Name())
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return coded(exit.ExitCode(), fmt.Errorf("%w: kubectl ended with %d", errTold, exit.ExitCode()))
	}
	return err
}

// kubectlProgram is the kubectl to run, with the arguments that come first.
func kubectlProgram() (string, []string, error) {
	if self, err := program(); err == nil {
		kube := filepath.Join(filepath.Dir(self), "system", "kube")
		if _, err := os.Stat(kube); err == nil {
			return kube, []string{"kubectl"}, nil
		}
	}
	path, err := exec.LookPath("kubectl")
	return path, nil, hint(err, "make system builds one, or put kubectl on the PATH")
}

// access gets a credential from the first machine of the site that answers.
func (e *env) access(ctx context.Context, name string, o accessOptions) ([]byte, error) {
	r, err := e.repo(ctx)
	if err != nil {
		return nil, err
	}
	f, err := load(workTree(r.dir))
	if err != nil {
		return nil, err
	}
	s, err := site(f, name)
	if err != nil {
		return nil, err
	}
	var config []byte
	err = e.eachMachine(ctx, f, s, o.address, r, func(ctx context.Context, c *operator.Client, address string) error {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		config, err = credential(ctx, c, key, address, o.life)
		return err
	})
	return config, err
}

// eachMachine opens a session with the control planes of a site, through the
// hubs or at an address on its LAN, until one call of use succeeds.
func (e *env) eachMachine(ctx context.Context, f *fleet.Fleet, s *fleet.Site, lan string, r *repo, use func(context.Context, *operator.Client, string) error) error {
	if len(s.Machines) == 0 {
		return hint(fmt.Errorf("site %s has no machine", s.Name), "holdfast adopt %s CODE", s.Name)
	}
	signer, err := e.operator(ctx, r, f.Trust)
	if err != nil {
		return err
	}
	addresses := []string{withPort(lan, machinePort)}
	if lan == "" {
		if addresses, err = e.hubAddresses(r.GitDir(), f); err != nil {
			return err
		}
	}
	identity, err := clientIdentity(f.ID)
	if err != nil {
		return err
	}
	var faults []error
	for _, address := range addresses {
		for _, m := range s.Machines {
			if m.Role != "control-plane" {
				continue
			}
			pin, err := link.MachinePin(m.ID)
			if err != nil {
				return err
			}
			c, err := operator.Open(ctx, operator.ClientConfig{
				Fleet: f.ID, Signer: signer, Roles: []string{operator.Read},
				Dial: link.DialConfig{Address: address, ServerName: link.MachineName(m.ID, f.ID).String(), Identity: identity, Pins: []link.Pin{pin}},
			})
			if err != nil {
				faults = append(faults, unreachable(err, fmt.Sprintf("machine %s of %s at %s", m.Name, s.Name, address)))
				continue
			}
			err = use(ctx, c, address)
			c.Close()
			if err == nil {
				return nil
			}
			faults = append(faults, fmt.Errorf("machine %s: %w", m.Name, err))
		}
	}
	return errors.Join(faults...)
}

// machinePort is where machines serve their API on the LAN.
const machinePort = "7443"

func withPort(address, port string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(address, port)
}

// credentialReply is what a machine answers to POST /v1/credential.
type credentialReply struct {
	Site        string    `json:"site"`
	User        string    `json:"user"`
	CA          string    `json:"ca"`
	Certificate string    `json:"certificate"`
	ServerName  string    `json:"serverName"`
	Expires     time.Time `json:"expires"`
}

func credential(ctx context.Context, c *operator.Client, key *ecdsa.PrivateKey, address string, life time.Duration) ([]byte, error) {
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	request := map[string]any{"key": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})), "seconds": int64(life.Seconds())}
	var reply credentialReply
	if err := c.Call(ctx, http.MethodPost, "/v1/credential", request, &reply); err != nil {
		var refusal *wire.Refusal
		if errors.As(err, &refusal) {
			return nil, coded(CodeRefused, err)
		}
		return nil, err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
# made by holdfast kubeconfig; good until %s
clusters:
- name: %[2]s
  cluster:
    server: https://%[3]s
    tls-server-name: %[4]s
    certificate-authority-data: %[5]s
users:
- name: %[2]s
  user:
    client-certificate-data: %[6]s
    client-key-data: %[7]s
contexts:
- name: %[2]s
  context: {cluster: %[2]s, user: %[2]s}
current-context: %[2]s
`, reply.Expires.Local().Format(time.DateTime), reply.Site, address, reply.ServerName, b64([]byte(reply.CA)), b64([]byte(reply.Certificate)),
		b64(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}))), nil
}
