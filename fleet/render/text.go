package render

import (
	"bytes"
	"fmt"

	"sigs.k8s.io/yaml"
)

// YAML is a rendering for people and for kubectl: the objects as documents,
// everything else as comments.
func (r *Rendering) YAML() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# site %s, edition %d\n# effect %s\n#\n", r.Site, r.Edition, r.Effect.Digest)
	comment(&b, "settings", r.Settings)
	for _, image := range r.Images {
		fmt.Fprintf(&b, "# image %s@%s, %d bytes\n", image.Ref, image.Digest, image.Size)
	}
	for _, ref := range r.Delete {
		fmt.Fprintf(&b, "# deletes %s\n", refString(ref))
	}
	for _, a := range r.Apps {
		fmt.Fprintf(&b, "\n# app %s %s in namespace %s\n", a.Name, a.Version, a.Namespace)
		fmt.Fprintf(&b, "# effect %s\n", a.Digest)
		for _, ref := range a.Delete {
			fmt.Fprintf(&b, "# deletes %s\n", refString(ref))
		}
		for _, o := range a.Objects {
			fmt.Fprintf(&b, "---\n%s", toYAML(o.JSON))
		}
	}
	return b.Bytes()
}

func comment(b *bytes.Buffer, title string, json []byte) {
	fmt.Fprintf(b, "# %s:\n", title)
	for _, line := range bytes.Split(bytes.TrimSpace(toYAML(json)), []byte("\n")) {
		fmt.Fprintf(b, "#   %s\n", line)
	}
	b.WriteString("#\n")
}

func toYAML(json []byte) []byte {
	y, err := yaml.JSONToYAML(json)
	if err != nil {
		panic(fmt.Sprintf("render: canonical JSON is no YAML: %v", err))
	}
	return y
}
