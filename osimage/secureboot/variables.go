package secureboot

import (
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf16"

	"github.com/holdfast-edge/holdfast/osimage/gpt"
	"github.com/holdfast-edge/holdfast/osimage/pkcs7"
)

var (
	guidGlobal   = gpt.MustParseGUID("8be4df61-93ca-11d2-aa0d-00e098032b8c") // of PK and KEK
	guidDatabase = gpt.MustParseGUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f") // of db
	guidX509     = gpt.MustParseGUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
	guidPKCS7    = gpt.MustParseGUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
)

const (
	bootService   = 0x3  // NON_VOLATILE | BOOTSERVICE_ACCESS
	authenticated = 0x27 // and RUNTIME_ACCESS | TIME_BASED_AUTHENTICATED_WRITE_ACCESS
)

var le = binary.LittleEndian

// SignatureList is an EFI_SIGNATURE_LIST with one certificate. Its owner is a GUID made of the certificate.
func SignatureList(cert *x509.Certificate) []byte {
	return signatureList(cert, gpt.Derive("secure boot owner", string(cert.Raw)))
}

func signatureList(cert *x509.Certificate, owner gpt.GUID) []byte {
	size := uint32(16 + len(cert.Raw))
	out := slices.Clone(guidX509[:])
	out = le.AppendUint32(out, 28+size)
	out = le.AppendUint32(out, 0)
	out = le.AppendUint32(out, size)
	return slices.Concat(out, owner[:], cert.Raw)
}

// variable is one of the three, with who signs it.
type variable struct {
	name   string
	vendor gpt.GUID
	list   []byte
	signer Pair
}

func (k Keys) variables() []variable {
	return []variable{
		{"PK", guidGlobal, SignatureList(k.PK.Cert), k.PK},
		{"KEK", guidGlobal, SignatureList(k.KEK.Cert), k.PK},
		{"db", guidDatabase, SignatureList(k.DB.Cert), k.KEK},
	}
}

// Enrolment returns PK.auth, KEK.auth and db.auth by name: what systemd-boot
// enrols from loader/keys/auto on a machine in setup mode. It needs the private keys of PK and KEK.
func (k Keys) Enrolment() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, v := range k.variables() {
		payload, err := v.signed(k.PK.Cert.NotBefore)
		if err != nil {
			return nil, err
		}
		out[v.name+".auth"] = payload
	}
	return out, nil
}

// signed is EFI_VARIABLE_AUTHENTICATION_2 with the list behind it.
func (v variable) signed(at time.Time) ([]byte, error) {
	if v.signer.Key == nil {
		return nil, fmt.Errorf("sign variable %s: the private key is not here", v.name)
	}
	stamp := efiTime(at)
	content := slices.Concat(utf16le(v.name), v.vendor[:], le.AppendUint32(nil, authenticated), stamp, v.list)
	signature, err := pkcs7.Detached(content, v.signer.Key, v.signer.Cert)
	if err != nil {
		return nil, fmt.Errorf("sign variable %s: %w", v.name, err)
	}
	certificate := le.AppendUint32(nil, uint32(24+len(signature)))
	certificate = le.AppendUint16(certificate, 0x0200) // revision
	certificate = le.AppendUint16(certificate, 0x0ef1) // WIN_CERT_TYPE_EFI_GUID
	return slices.Concat(stamp, certificate, guidPKCS7[:], signature, v.list), nil
}

// efiTime is EFI_TIME in UTC, to the second.
func efiTime(t time.Time) []byte {
	t = t.UTC()
	out := le.AppendUint16(nil, uint16(t.Year()))
	out = append(out, byte(t.Month()), byte(t.Day()), byte(t.Hour()), byte(t.Minute()), byte(t.Second()))
	return append(out, make([]byte, 9)...)
}

func utf16le(s string) []byte {
	var out []byte
	for _, c := range utf16.Encode([]rune(s)) {
		out = le.AppendUint16(out, c)
	}
	return out
}

// The variable store of OVMF and AAVMF: a firmware volume, in it a store of
// authenticated variables, each with a header of 60 bytes, at multiples of 4.
var (
	guidStore      = gpt.MustParseGUID("aaf32c78-947b-439a-a180-2e144ec37792")
	guidEnable     = gpt.MustParseGUID("f0a30bc7-af08-4556-99c4-001009c93a44") // SecureBootEnable
	guidCustomMode = gpt.MustParseGUID("c076ec0c-7028-4399-a072-71ee5c448b9f")
)

const (
	storeHeader    = 28
	variableHeader = 60
	variableStart  = 0x55aa
	variableAdded  = 0x3f
)

// VarsFile returns the template, a file like OVMF_VARS_4M.fd without keys, with
// PK, KEK and db written in and Secure Boot on: firmware that starts with it is
// in user mode. It needs no private key.
func (k Keys) VarsFile(template []byte) ([]byte, error) {
	out := slices.Clone(template)
	if len(out) < 0x48+storeHeader || string(out[40:44]) != "_FVH" {
		return nil, errors.New("no firmware volume: want a file such as OVMF_VARS_4M.fd")
	}
	store := int(le.Uint16(out[48:])) // HeaderLength of the volume
	if store+storeHeader > len(out) || gpt.GUID(out[store:store+16]) != guidStore {
		return nil, errors.New("no store of authenticated variables in the firmware volume")
	}
	end := store + int(le.Uint32(out[store+16:]))
	if end > len(out) || end < store+storeHeader {
		return nil, fmt.Errorf("the variable store ends at byte %d of %d", end, len(out))
	}
	at := store + storeHeader
	for at+variableHeader <= end && le.Uint16(out[at:]) == variableStart {
		name, data := int(le.Uint32(out[at+36:])), int(le.Uint32(out[at+40:]))
		next := at + variableHeader + name + data
		if next > end {
			return nil, fmt.Errorf("the variable at byte %d is larger than the store", at)
		}
		text := out[at+variableHeader:][:name]
		for _, v := range k.variables() {
			if out[at+2] == variableAdded && string(text) == string(utf16le(v.name+"\x00")) {
				return nil, fmt.Errorf("the template has a %s already: take one without keys", v.name)
			}
		}
		at = (next + 3) &^ 3
	}
	for _, v := range k.variables() {
		at = put(out[:end], at, v.name, v.vendor, authenticated, efiTime(k.PK.Cert.NotBefore), v.list)
	}
	at = put(out[:end], at, "SecureBootEnable", guidEnable, bootService, make([]byte, 16), []byte{1})
	at = put(out[:end], at, "CustomMode", guidCustomMode, bootService, make([]byte, 16), []byte{0})
	if at > end {
		return nil, errors.New("the variable store is too small for three certificates")
	}
	return out, nil
}

// put writes a variable if it has room, and returns where the next one goes in either case.
func put(store []byte, at int, name string, vendor gpt.GUID, attributes uint32, stamp, data []byte) int {
	text := utf16le(name + "\x00")
	b := le.AppendUint16(nil, variableStart)
	b = append(b, variableAdded, 0)
	b = le.AppendUint32(b, attributes)
	b = le.AppendUint64(b, 0) // monotonic count
	b = append(b, stamp...)
	b = le.AppendUint32(b, 0) // public key index
	b = le.AppendUint32(b, uint32(len(text)))
	b = le.AppendUint32(b, uint32(len(data)))
	b = slices.Concat(b, vendor[:], text, data)
	if at+len(b) <= len(store) {
		copy(store[at:], b)
	}
	return (at + len(b) + 3) &^ 3
}
