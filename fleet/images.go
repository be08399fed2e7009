package fleet

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ImagesLock is images.lock of one version of an app: the bytes that each name
// of an app image stands for.
type ImagesLock = ImagesLockSpec

// ParseImagesLock reads an images.lock; file is the name that faults carry.
func ParseImagesLock(file string, data []byte) (*ImagesLock, error) {
	l, faults := parseImagesLock(file, data)
	if faults, _ = faults.split(); len(faults) > 0 {
		return nil, faults
	}
	return l, nil
}

func parseImagesLock(file string, data []byte) (*ImagesLock, Faults) {
	n, faults := parse(&source{file: file}, data)
	d := decoder{}
	l := &ImagesLock{}
	if _, spec := d.header(n, "ImagesLock", ""); spec != nil {
		d.decode(l, spec, "spec")
		names := once{}
		for i := range l.Images {
			x, at := item(spec, "images", i)
			names.see(&faults, l.Images[i].Name, x.get("name"), at+".name", "stands here twice")
		}
	}
	return l, append(faults, d.faults...)
}

// EncodeImagesLock writes an images.lock: sorted, one spelling for equal content.
func EncodeImagesLock(l ImagesLock) []byte {
	images := slices.Clone(l.Images)
	slices.SortFunc(images, func(a, b LockedImage) int { return cmp.Compare(a.Name, b.Name) })
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Written by holdfast lock.\napiVersion: %s\nkind: ImagesLock\nspec:\n", APIVersion)
	if len(images) == 0 {
		b.WriteString("  images: []\n")
		return b.Bytes()
	}
	b.WriteString("  images:\n")
	for _, i := range images {
		fmt.Fprintf(&b, "    - name: %s\n      digest: %s\n      size: %d\n", plainOrQuoted(i.Name), i.Digest, i.Size)
		if len(i.Platforms) > 0 {
			fmt.Fprintf(&b, "      platforms: [%s]\n", strings.Join(slices.Sorted(slices.Values(i.Platforms)), ", "))
		}
	}
	return b.Bytes()
}

// plainOrQuoted is s as a YAML scalar that reads back as the same text.
func plainOrQuoted(s string) string {
	for _, r := range s {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:+@=", r) {
			return strconv.Quote(s)
		}
	}
	if n, faults := parse(&source{}, []byte("x: "+s)); len(faults) > 0 || n.get("x").str() != s || s == "" {
		return strconv.Quote(s)
	}
	return s
}
