package wire

import (
	"bytes"
	"compress/flate"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/fleet"
)

const testFleet = fleet.ID("000102030405060708090a0b0c0d0e0f")

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func testHello() Hello {
	return Hello{Capability: Capability, Fleet: testFleet, Machine: fleet.MachineIDOf([]byte("key")), N: 7, Version: "1.2.3"}
}

func TestDecodeIsForgivingOfTheNew(t *testing.T) {
	want := testHello()
	plain, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	newer := append(plain[:len(plain)-1:len(plain)-1], `,"mood":{"good":true}}`...)
	var got Hello
	if err := Decode(bytes.NewReader(newer), 0, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeRefuses(t *testing.T) {
	deflate := func(data []byte) []byte {
		out := bytes.NewBuffer([]byte{deflated})
		w, err := flate.NewWriterDict(out, flate.BestCompression, []byte(dictionary1))
		if err != nil {
			t.Fatal(err)
		}
		w.Write(data)
		w.Close()
		return out.Bytes()
	}
	valid, err := json.Marshal(testHello())
	if err != nil {
		t.Fatal(err)
	}
	with := func(old, new string) []byte { return bytes.Replace(valid, []byte(old), []byte(new), 1) }
	for _, c := range []struct {
		name string
		data []byte
		want error
	}{
		{"nothing", nil, ErrMalformed},
		{"no JSON", []byte("hello"), ErrMalformed},
		{"two messages", append(valid[:len(valid):len(valid)], valid...), ErrMalformed},
		{"cut short", valid[:len(valid)-1], ErrMalformed},
		{"oversized", []byte(`{"version":"` + strings.Repeat("x", MaxBytes) + `"}`), ErrOversized},
		{"a bomb", deflate(bytes.Repeat([]byte(" "), 100*MaxBytes)), ErrOversized},
		{"no deflate", []byte{deflated, 0xff, 0xff}, ErrMalformed},
		{"deflate cut short", deflate(valid)[:20], ErrMalformed},
		{"capability 0", with(`"capability":1`, `"capability":0`), ErrMalformed},
		{"no fleet id", with(string(testFleet), "00"), ErrMalformed},
		{"upper-case machine id", with(string(testHello().Machine), strings.ToUpper(string(testHello().Machine))), ErrMalformed},
		{"terminal escape", with("1.2.3", `\u001b[2J`), ErrMalformed},
		{"number for a text", with(`"1.2.3"`, `7`), ErrMalformed},
		{"long version", with("1.2.3", strings.Repeat("1", 300)), ErrMalformed},
		{"slice that is no digest", with(`"version"`, `"slice":"ABC","version"`), ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) { wantError(t, Decode(bytes.NewReader(c.data), 0, new(Hello)), c.want) })
	}
	if err := Decode(bytes.NewReader(deflate(valid)), 0, new(Hello)); err != nil {
		t.Errorf("a valid message right after: %v", err)
	}
}

func TestClean(t *testing.T) {
	if got := Clean("a\x1b[2J\tb\u202ec\xff"); strings.ContainsFunc(got, unprintable) {
		t.Errorf("got %q", got)
	}
	long := Clean(strings.Repeat("ü", maxDetail))
	if len(long) > maxDetail || !utf8.ValidString(long) || !strings.HasSuffix(long, "ü…") {
		t.Errorf("got %d bytes ending in %q", len(long), long[len(long)-6:])
	}
}

func introduce(t *testing.T) (data []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	data, err = SignIntroduction(Introduction{
		Fleet: testFleet, Recipient: "age1qyqszqgpqyqszqgpqyqszqgp", Protection: "none", Hostname: "box: 7\x1b", Serial: "",
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return data, key
}

func TestIntroduction(t *testing.T) {
	data, key := introduce(t)
	in, err := ParseIntroduction(data)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	want := &Introduction{
		Fleet: testFleet, Machine: fleet.MachineIDOf(spki), SPKI: spki,
		Recipient: "age1qyqszqgpqyqszqgpqyqszqgp", Protection: "none", Hostname: "box: 7 ",
	}
	if diff := cmp.Diff(want, in); diff != "" {
		t.Error(diff)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	data, err = SignIntroduction(Introduction{Fleet: testFleet, Protection: "tpm"}, edwards)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseIntroduction(data); err != nil {
		t.Errorf("Ed25519: %v", err)
	}
	if _, err := SignIntroduction(Introduction{Fleet: "x", Protection: "tpm"}, edwards); err == nil {
		t.Error("signed for a fleet that is none")
	}
}

func TestIntroductionRefuses(t *testing.T) {
	data, _ := introduce(t)
	other, _ := introduce(t)
	text := string(data)
	line := func(s, field string) string {
		_, rest, _ := strings.Cut(s, field+": ")
		value, _, _ := strings.Cut(rest, "\n")
		return value
	}
	swap := func(field string) string {
		return strings.Replace(text, line(text, field), line(string(other), field), 1)
	}
	for _, c := range []struct{ name, data string }{
		{"empty", ""},
		{"another recipient", strings.Replace(text, "age1q", "age1z", 1)},
		{"another fleet", strings.Replace(text, string(testFleet), "ff"+string(testFleet[2:]), 1)},
		{"another protection", strings.Replace(text, "Protection: none", "Protection: tpm", 1)},
		{"another machine's id", swap("Machine")},
		{"another machine's id and key", strings.Replace(swap("Machine"), line(text, "Key"), line(string(other), "Key"), 1)},
		{"another signature", swap("Signature")},
		{"unsigned", strings.Replace(text, line(text, "Signature"), "", 1)},
		{"a line more", text + "More: x\n"},
		{"a line twice", strings.Replace(text, "Serial: \n", "Serial: \nSerial: \n", 1)},
		{"lines swapped", strings.Replace(text, "Hostname: box: 7 \nSerial: \n", "Serial: \nHostname: box: 7 \n", 1)},
		{"no last newline", strings.TrimSuffix(text, "\n")},
		{"CRLF", strings.ReplaceAll(text, "\n", "\r\n")},
		{"version 2", strings.Replace(text, "introduction 1", "introduction 2", 1)},
		{"key in another spelling", strings.Replace(text, "Key: ", "Key:  ", 1)},
		{"oversized", text + strings.Repeat("x", maxIntroduction)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.data == text {
				t.Fatal("nothing was altered")
			}
			_, err := ParseIntroduction([]byte(c.data))
			wantError(t, err, ErrIntroduction)
		})
	}
}

func someReport(seq uint64, draw *mathrand.Rand) Report {
	r := Report{Seq: seq, Time: int64(1_700_000_000 + seq), State: State{Site: "berlin", N: draw.Uint64N(3), Phase: severity[draw.IntN(3)]}}
	for i := range 6 {
		if draw.IntN(3) > 0 {
			r.Apps = append(r.Apps, AppStatus{Name: fmt.Sprint("app", i), Phase: severity[draw.IntN(2)], Ready: draw.IntN(2)})
		}
		if draw.IntN(3) > 0 {
			r.Conditions = append(r.Conditions, Condition{Name: fmt.Sprint("condition", i), OK: draw.IntN(2) == 0})
		}
	}
	return r
}

// What a hub pieces together from differences is what the machine said.
func TestUpdatesAddUp(t *testing.T) {
	draw := mathrand.New(mathrand.NewPCG(1, 2))
	var sent, held *Report
	for seq := uint64(1); seq < 500; seq++ {
		next := someReport(seq, draw)
		if draw.IntN(10) == 0 {
			sent, held = nil, nil // the hub lost its disk
		}
		body, err := Encode(Diff(sent, next))
		if err != nil {
			t.Fatal(err)
		}
		var u Update
		if err := Decode(bytes.NewReader(body), 0, &u); err != nil {
			t.Fatal(err)
		}
		if held, err = u.Apply(held); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&next, held); diff != "" {
			t.Fatal(diff)
		}
		if _, err := u.Apply(held); u.Base != 0 && !errors.Is(err, ErrBase) {
			t.Fatalf("applied twice: %v", err)
		}
		sent = &next
	}
	same := *sent
	same.Seq++
	if u := Diff(sent, same); !u.Empty() {
		t.Errorf("nothing changed, and yet %+v", u)
	}
}

func TestUpdateRefuses(t *testing.T) {
	many := make([]AppStatus, maxList+1)
	for _, c := range []struct {
		name string
		u    Update
	}{
		{"no number", Update{State: &State{}}},
		{"based on itself", Update{Seq: 3, Base: 3}},
		{"whole without state", Update{Seq: 1}},
		{"too many apps", Update{Seq: 1, State: &State{}, Apps: many}},
		{"escape in an app's name", Update{Seq: 1, State: &State{}, Apps: []AppStatus{{Name: "\x1b]0;"}}}},
		{"effect that is no digest", Update{Seq: 1, State: &State{Effect: "zz"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			body, err := Encode(c.u)
			if err != nil {
				t.Fatal(err)
			}
			wantError(t, Decode(bytes.NewReader(body), 0, new(Update)), ErrMalformed)
		})
	}
	full := &Report{Seq: 1}
	for i := range maxList {
		full.Apps = append(full.Apps, AppStatus{Name: fmt.Sprint(i)})
	}
	if _, err := (Update{Seq: 2, Base: 1, Apps: []AppStatus{{Name: "one more"}}}).Apply(full); err == nil {
		t.Error("a report grew without bound")
	}
}

func TestReportOfALineChangeIsSmall(t *testing.T) {
	effect := func(s string) string { d := sha256.Sum256([]byte(s)); return hex.EncodeToString(d[:]) }
	app := AppStatus{Name: "hello", Version: "1.0.0", Phase: OK, Applied: 9, Ready: 2, Wanted: 2}
	old := Report{Seq: 1763820000, Time: 1763820000, State: State{Site: "0417-berlin", N: 41, Effect: effect("a"), Phase: OK, Slice: effect("c")}, Apps: []AppStatus{app}}
	next := old
	next.Seq, next.Time, next.N, next.Effect, next.Slice = 1763820099, 1763820099, 42, effect("b"), effect("d")
	app.Applied, app.Unchanged = 1, 8
	next.Apps = []AppStatus{app}
	u := Diff(&old, next)
	plain, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	body, err := Encode(u)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes of JSON, %d on the wire", len(plain), len(body))
	if len(body) > 200 {
		t.Errorf("a report of one change takes %d bytes, want at most 200", len(body))
	}
}

func TestWorst(t *testing.T) {
	for _, c := range []struct {
		parts []Phase
		want  Phase
	}{
		{nil, OK},
		{[]Phase{OK, OK}, OK},
		{[]Phase{OK, Staging, Waiting}, Staging},
		{[]Phase{Offline, Failed, OK}, Failed},
		{[]Phase{OK, "a phase of next year", Failed}, "a phase of next year"},
	} {
		if got := Worst(c.parts...); got != c.want {
			t.Errorf("Worst(%v) = %s, want %s", c.parts, got, c.want)
		}
	}
}

func TestCall(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/echo":
			var h Hello
			if Read(w, r, &h) == nil {
				Write(w, http.StatusOK, &HelloReply{Capability: h.Capability, Site: "berlin"})
			}
		case "/have":
			Write(w, http.StatusConflict, &Refusal{Have: strings.Repeat("0f", 32)})
		case "/foreign":
			http.Error(w, "<html>", http.StatusBadGateway)
		}
	}))
	defer server.Close()
	hello := testHello()
	var reply HelloReply
	if err := Call(t.Context(), server.Client(), http.MethodPost, server.URL+"/echo", &hello, &reply); err != nil || reply.Site != "berlin" {
		t.Errorf("got %+v, %v", reply, err)
	}
	hello.Fleet = "x"
	err := Call(t.Context(), server.Client(), http.MethodPost, server.URL+"/echo", &hello, &reply)
	if r, ok := AsRefusal(err, http.StatusBadRequest); !ok || !strings.Contains(r.Reason, "fleet id") {
		t.Errorf("got %v, want a refusal with its reason", err)
	}
	err = Call(t.Context(), server.Client(), http.MethodPost, server.URL+"/echo", strings.Repeat(noise(t), 2), &reply)
	if _, ok := AsRefusal(err, http.StatusRequestEntityTooLarge); !ok {
		t.Errorf("got %v, want 413", err)
	}
	err = Call(t.Context(), server.Client(), http.MethodPut, server.URL+"/have", nil, nil)
	if r, ok := AsRefusal(err, http.StatusConflict); !ok || len(r.Have) != 64 {
		t.Errorf("got %v, want what it has", err)
	}
	err = Call(t.Context(), server.Client(), http.MethodGet, server.URL+"/foreign", nil, nil)
	if _, ok := AsRefusal(err, http.StatusBadGateway); !ok || strings.Contains(err.Error(), "html") {
		t.Errorf("got %v, want the status alone", err)
	}
}

func noise(t *testing.T) string {
	b := make([]byte, MaxBytes)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// fuzzDecode: what decodes encodes to a message that decodes to the same.
func fuzzDecode[T any](f *testing.F, seeds ...any) {
	for _, s := range seeds {
		body, err := Encode(s)
		if err != nil {
			f.Fatal(err)
		}
		plain, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
		f.Add(plain)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		first := new(T)
		if Decode(bytes.NewReader(data), 0, first) != nil {
			return
		}
		body, err := Encode(first)
		if err != nil {
			t.Fatal(err)
		}
		second := new(T)
		if err := Decode(bytes.NewReader(body), 4*MaxBytes, second); err != nil {
			t.Fatal(err)
		}
		a, _ := json.Marshal(first)
		b, _ := json.Marshal(second)
		if !bytes.Equal(a, b) {
			t.Errorf("%s became %s", a, b)
		}
	})
}

func FuzzDecodeHello(f *testing.F) { fuzzDecode[Hello](f, testHello()) }

func FuzzDecodeUpdate(f *testing.F) {
	r := someReport(1, mathrand.New(mathrand.NewPCG(1, 2)))
	fuzzDecode[Update](f, Diff(nil, r), Diff(&r, someReport(2, mathrand.New(mathrand.NewPCG(3, 4)))))
}

func FuzzDecodeStatus(f *testing.F) {
	fuzzDecode[Status](f, Status{Fleet: testFleet, Sites: []SiteStatus{{Name: "berlin", State: OK, Machines: []MachineStatus{{Name: "a", Apps: []AppStatus{{Name: "pos"}}}}}}})
}

func FuzzParseIntroduction(f *testing.F) {
	key := &ecdsa.PrivateKey{D: big.NewInt(1)}
	key.Curve = elliptic.P256()
	key.X, key.Y = key.Curve.ScalarBaseMult([]byte{1})
	data, err := SignIntroduction(Introduction{Fleet: testFleet, Protection: "none", Hostname: "box"}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(introductionHead))
	f.Fuzz(func(t *testing.T, data []byte) {
		in, err := ParseIntroduction(data)
		if err != nil {
			return
		}
		statement, err := in.statement()
		if err != nil || !bytes.HasPrefix(data, statement) {
			t.Errorf("%q was read as %q, %v", data, statement, err)
		}
	})
}
