package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/kube"
)

var (
	start   = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	kubelet = kube.Certificate{
		Name: "kubelet", CA: kube.CACluster, CommonName: "system:node:till", Organizations: []string{"system:nodes"},
		DNSNames: []string{"till"}, Addresses: []netip.Addr{netip.MustParseAddr("10.213.0.11")}, Server: true, Client: true,
	}
	peer = kube.Certificate{Name: "etcd-peer", CA: kube.CAEtcd, CommonName: "till", DNSNames: []string{"till"}, Server: true, Client: true}
)

// site is a store with authorities and a clock that a test sets.
func site(t *testing.T) (*Store, *time.Time) {
	t.Helper()
	now := start
	s, err := Open(t.TempDir(), Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.MakeAuthorities("test"); err != nil {
		t.Fatal(err)
	}
	return s, &now
}

func ensure(t *testing.T, s *Store, wanted ...kube.Certificate) Result {
	t.Helper()
	r, err := s.Ensure(context.Background(), wanted, s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLifeOfALeaf(t *testing.T) {
	s, now := site(t)
	r := ensure(t, s, kubelet, peer)
	if diff := cmp.Diff([]string{"kubelet", "etcd-peer"}, r.Made); diff != "" {
		t.Fatal(diff)
	}
	cert, err := s.readCertificate("kubelet.crt")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := cert.NotBefore, start.Add(-30*24*time.Hour); !got.Equal(want) {
		t.Errorf("valid from %v, want %v", got, want)
	}
	if got, want := r.Next, start.Add(10*24*time.Hour); !got.Equal(want) {
		t.Errorf("due %v, want %v", got, want)
	}
	key, err := os.ReadFile(s.path("kubelet.key"))
	if err != nil {
		t.Fatal(err)
	}

	if r := ensure(t, s, kubelet, peer); len(r.Made) != 0 {
		t.Errorf("a second run made %v", r.Made)
	}
	*now = start.Add(10*24*time.Hour - time.Second)
	if r := ensure(t, s, kubelet); len(r.Made) != 0 {
		t.Errorf("before a third of its life it was renewed")
	}
	*now = start.Add(10 * 24 * time.Hour)
	if r := ensure(t, s, kubelet); len(r.Made) != 1 {
		t.Errorf("after a third of its life it was not renewed")
	}
	again, err := os.ReadFile(s.path("kubelet.key"))
	if err != nil {
		t.Fatal(err)
	}
	if !cmp.Equal(key, again) {
		t.Error("renewal changed the key: for an instant its files disagreed")
	}
}

func TestMadeAnewWhen(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, s *Store, now *time.Time){
		"expired":                 func(t *testing.T, s *Store, now *time.Time) { *now = start.AddDate(1, 0, 0) },
		"clock before its start":  func(t *testing.T, s *Store, now *time.Time) { *now = start.AddDate(-1, 0, 0) },
		"certificate damaged":     func(t *testing.T, s *Store, _ *time.Time) { put(t, s, "kubelet.crt", "noise") },
		"certificate empty":       func(t *testing.T, s *Store, _ *time.Time) { put(t, s, "kubelet.crt", "") },
		"key damaged":             func(t *testing.T, s *Store, _ *time.Time) { put(t, s, "kubelet.key", "noise") },
		"key lost":                func(t *testing.T, s *Store, _ *time.Time) { os.Remove(s.path("kubelet.key")) },
		"key of another":          func(t *testing.T, s *Store, _ *time.Time) { rename(t, s, "etcd-peer.key", "kubelet.key") },
		"signed by another":       func(t *testing.T, s *Store, _ *time.Time) { rename(t, s, "etcd-peer.crt", "kubelet.crt") },
		"signed by a former self": func(t *testing.T, s *Store, _ *time.Time) { newAuthority(t, s) },
	} {
		t.Run(name, func(t *testing.T) {
			s, now := site(t)
			ensure(t, s, kubelet, peer)
			spoil(t, s, now)
			if r := ensure(t, s, kubelet); len(r.Made) != 1 {
				t.Fatal("not made anew")
			}
			if _, err := tls.LoadX509KeyPair(s.path("kubelet.crt"), s.path("kubelet.key")); err != nil {
				t.Error(err)
			}
			if r := ensure(t, s, kubelet); len(r.Made) != 0 {
				t.Error("made anew once more")
			}
		})
	}
}

func TestChangedWish(t *testing.T) {
	s, _ := site(t)
	ensure(t, s, kubelet)
	wish := kubelet
	wish.Addresses = []netip.Addr{netip.MustParseAddr("10.213.0.12")}
	if r := ensure(t, s, wish); len(r.Made) != 1 {
		t.Error("another address did not make another certificate")
	}
}

func TestAuthoritiesAreApart(t *testing.T) {
	s, _ := site(t)
	ensure(t, s, kubelet, peer)
	cert, err := s.readCertificate("kubelet.crt")
	if err != nil {
		t.Fatal(err)
	}
	etcd, err := s.pool(kube.CAEtcd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: etcd, CurrentTime: start, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
		t.Error("a kubelet's certificate passes for an etcd peer's")
	}
}

// A cut between any two writes is finished by the next run.
func TestCutRuns(t *testing.T) {
	full, _ := site(t)
	ensure(t, full, kubelet)
	names, err := filepath.Glob(filepath.Join(full.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, missing := range names {
		name := filepath.Base(missing)
		if filepath.Ext(name) == ".key" && name != "kubelet.key" {
			continue // written before what depends on it: a cut cannot leave it out
		}
		t.Run(name, func(t *testing.T) {
			s, _ := site(t)
			ensure(t, s, kubelet)
			if err := os.Remove(s.path(name)); err != nil {
				t.Fatal(err)
			}
			if err := s.MakeAuthorities("test"); err != nil {
				t.Fatal(err)
			}
			ensure(t, s, kubelet)
			if !s.HasAuthorities() {
				t.Error("not finished")
			}
			if _, err := tls.LoadX509KeyPair(s.path("kubelet.crt"), s.path("kubelet.key")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFloor(t *testing.T) {
	floor := start.AddDate(0, -6, 0)
	s, err := Open(t.TempDir(), Options{Now: func() time.Time { return start }, Floor: floor})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.MakeAuthorities("test"); err != nil {
		t.Fatal(err)
	}
	ensure(t, s, kubelet)
	cert, err := s.readCertificate("kubelet.crt")
	if err != nil {
		t.Fatal(err)
	}
	if !cert.NotBefore.Equal(floor) {
		t.Errorf("valid from %v, want the floor %v", cert.NotBefore, floor)
	}
}

func TestOperator(t *testing.T) {
	s, _ := site(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := s.SignOperator(key.Public(), "SHA256:abc", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := parseCertificate(chain)
	if err != nil {
		t.Fatal(err)
	}
	if cert.Subject.CommonName != "op:SHA256:abc" || len(cert.Subject.Organization) != 0 {
		t.Errorf("subject = %v, want the user alone", cert.Subject)
	}
	if got, want := cert.NotAfter, start.Add(time.Hour); !got.Equal(want) {
		t.Errorf("ends %v, want %v", got, want)
	}
}

func TestRefusals(t *testing.T) {
	t.Run("authority without its key", func(t *testing.T) {
		s, _ := site(t)
		os.Remove(s.path("cluster-ca.key"))
		if err := s.MakeAuthorities("test"); !errors.Is(err, ErrIncomplete) {
			t.Errorf("error = %v, want ErrIncomplete", err)
		}
	})
	t.Run("authority's key damaged", func(t *testing.T) {
		s, _ := site(t)
		put(t, s, "cluster-ca.key", "noise")
		if err := s.MakeAuthorities("test"); !errors.Is(err, errDamaged) {
			t.Errorf("error = %v, want damage", err)
		}
	})
	t.Run("signing on a worker", func(t *testing.T) {
		s, _ := site(t)
		os.Remove(s.path("etcd-ca.key"))
		if _, err := s.Ensure(context.Background(), []kube.Certificate{peer}, s); !errors.Is(err, ErrNoAuthority) {
			t.Errorf("error = %v, want ErrNoAuthority", err)
		}
	})
	t.Run("weak key", func(t *testing.T) {
		s, _ := site(t)
		key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.SignOperator(key.Public(), "SHA256:abc", time.Hour); err == nil {
			t.Error("signed")
		}
	})
	t.Run("signer that answers with another's", func(t *testing.T) {
		s, _ := site(t)
		if _, err := s.Ensure(context.Background(), []kube.Certificate{kubelet}, liar{s}); err == nil {
			t.Error("believed")
		}
		if _, err := os.Stat(s.path("kubelet.crt")); err == nil {
			t.Error("written")
		}
	})
}

type liar struct{ s *Store }

func (l liar) Sign(ctx context.Context, request []byte, c kube.Certificate) ([]byte, error) {
	c.CommonName = "system:node:other"
	return l.s.Sign(ctx, request, c)
}

// Whatever a request holds, the certificate says what was wanted.
func FuzzSign(f *testing.F) {
	dir := f.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		f.Fatal(err)
	}
	if err := s.MakeAuthorities("fuzz"); err != nil {
		f.Fatal(err)
	}
	key, err := s.newKey("seed.key")
	if err != nil {
		f.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"kubernetes"}}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request)
	f.Fuzz(func(t *testing.T, request []byte) {
		chain, err := s.Sign(context.Background(), request, kubelet)
		if err != nil {
			return
		}
		cert, err := parseCertificate(chain)
		if err != nil {
			t.Fatal(err)
		}
		if !says(cert, kubelet) {
			t.Errorf("the certificate says something else: %v %v", cert.Subject, cert.DNSNames)
		}
	})
}

func put(t *testing.T, s *Store, name, text string) {
	t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, s *Store, from, to string) {
	t.Helper()
	if err := os.Rename(s.path(from), s.path(to)); err != nil {
		t.Fatal(err)
	}
}

func newAuthority(t *testing.T, s *Store) {
	t.Helper()
	for _, name := range []string{"cluster-ca.key", "cluster-ca.crt"} {
		if err := os.Remove(s.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.MakeAuthorities("test"); err != nil {
		t.Fatal(err)
	}
}
