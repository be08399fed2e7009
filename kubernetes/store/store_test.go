package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/kubernetes/config"
)

// member configures a member on a free port of loopback, with keys of its own.
func member(t *testing.T) config.Etcd {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	pkcs, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	put := func(name, kind string, data []byte) string {
		file := filepath.Join(dir, name)
		must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}), 0o600))
		return file
	}
	cert := put("peer.crt", "CERTIFICATE", der)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	url := "https://" + l.Addr().String()
	must(t, l.Close())
	return config.Etcd{
		Name: "till", DataDir: filepath.Join(dir, "data"), PeerURL: url, Token: "test",
		PeerCert: cert, PeerKey: put("peer.key", "PRIVATE KEY", pkcs), PeerCA: cert,
		InitialCluster: map[string]string{"till": url},
	}
}

func begin(t *testing.T, c config.Etcd) *Member {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	m, err := Start(ctx, c, func(code int) { t.Errorf("etcd ends the process with %d", code) })
	must(t, err)
	return m
}

func TestKeepsWhatItAcknowledged(t *testing.T) {
	c := member(t)
	m := begin(t, c)
	client, err := m.Client()
	must(t, err)
	if got := client.Endpoints(); len(got) != 1 || got[0] != Endpoint {
		t.Errorf("endpoints = %q, want the embedded one: the API server goes by them", got)
	}
	if _, err := client.Status(t.Context(), Endpoint); err != nil {
		t.Errorf("status, by which the API server finds out about watch progress: %v", err)
	}
	_, err = client.Put(t.Context(), "a", "b")
	must(t, err)
	client.Close()
	m.Close()

	files, err := filepath.Glob(filepath.Join(c.DataDir, "member/wal/*.wal"))
	must(t, err)
	info, err := os.Stat(files[0])
	must(t, err)
	if info.Size() != walSegment {
		t.Errorf("log segment of %d bytes, want %d", info.Size(), walSegment)
	}

	m = begin(t, c)
	defer m.Close()
	client, err = m.Client()
	must(t, err)
	defer client.Close()
	r, err := client.Get(t.Context(), "a")
	must(t, err)
	if len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "b" {
		t.Errorf("after a restart got %v, want b", r.Kvs)
	}
}

const childEnv = "STORE_TEST_CONFIG"

// TestMain is also the process that damage ends.
func TestMain(m *testing.M) {
	text := os.Getenv(childEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var c config.Etcd
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := Start(ctx, c, os.Exit); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(ExitFailed)
	}
	os.Exit(0)
}

// Damage ends the process with a code of its own.
func TestDamage(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"log flipped": func(t *testing.T, dir string) {
			files, err := filepath.Glob(filepath.Join(dir, "member/wal/*.wal"))
			must(t, err)
			data, err := os.ReadFile(files[0])
			must(t, err)
			for i := 100; i < 400; i++ {
				data[i] ^= 0xff
			}
			must(t, os.WriteFile(files[0], data, 0o600))
		},
		"database noise": func(t *testing.T, dir string) {
			noise := make([]byte, 1<<16)
			rand.Read(noise)
			must(t, os.WriteFile(filepath.Join(dir, "member/snap/db"), noise, 0o600))
		},
		"database cut": func(t *testing.T, dir string) {
			must(t, os.Truncate(filepath.Join(dir, "member/snap/db"), 100))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := member(t)
			m := begin(t, c)
			client, err := m.Client()
			must(t, err)
			for i := range 50 {
				_, err = client.Put(t.Context(), fmt.Sprint(i), "value")
				must(t, err)
			}
			client.Close()
			m.Close()
			spoil(t, c.DataDir)

			text, err := json.Marshal(c)
			must(t, err)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+string(text))
			out, _ := cmd.CombinedOutput()
			if got := cmd.ProcessState.ExitCode(); got != ExitDamaged {
				t.Errorf("exit code %d, want %d\n%s", got, ExitDamaged, out)
			}
		})
	}
}

func TestVerdict(t *testing.T) {
	for text, want := range map[string]int{
		`failed to open WAL error=walpb: crc mismatch`:                                                             ExitDamaged,
		`failed to open database path=/state/etcd/member/snap/db error=invalid database`:                           ExitDamaged,
		`failed to read WAL, cannot be repaired error=unexpected EOF`:                                              ExitDamaged,
		`freepages: failed to get all reachable pages (page 7: multiple references) assertion failed`:              ExitDamaged,
		`failed to open database error=version "3.7.0" is not supported`:                                           ExitNewer,
		`cannot downgrade storage, WAL contains newer entries, as the target version (3.6.0) is lower`:             ExitNewer,
		`invalid downgrade; server version is lower than determined cluster version current-server-version=3.6.16`: ExitNewer,
		`failed to save hard state and entries error=write 0.wal: no space left on device unexpected EOF`:          ExitFailed,
		`failed to open database error=open /state/etcd/member/snap/db: permission denied`:                         ExitFailed,
		`creating peer listener failed error=listen tcp 10.213.0.11:2380: bind: cannot assign requested address`:   ExitFailed,
		`failed to update; member unknown`:                                                                         ExitFailed,
		`failed to open database error=open db: read-only file system; maybe corrupt`:                              ExitFailed,
	} {
		if got := verdict(text); got != want {
			t.Errorf("verdict(%q) = %d, want %d", text, got, want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
