package images

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	labelManaged = "io.cri-containerd.image"  // "managed": the CRI plugin shows the record to the kubelet
	labelPinned  = "io.cri-containerd.pinned" // "pinned": the kubelet's garbage collection passes it over
	labelStaged  = "holdfast.dev/staged"      // "true": pinned by us, so that we may unpin it
)

// Record is one name in containerd's image store.
type Record struct {
	Name   string
	Target Descriptor
	Labels map[string]string
}

// Containerd speaks to one containerd, in the namespace of Kubernetes.
type Containerd struct {
	conn    *grpc.ClientConn
	cri     cri.ImageServiceClient
	runtime criRuntime
	images  imagesapi.ImagesClient
}

// DialContainerd prepares a client for the socket. It does not connect: that happens with the first call,
// and again by itself after containerd has restarted.
func DialContainerd(socket string) (*Containerd, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// Quick to find a containerd that has come back; the default pauses grow to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", socket, err)
	}
	return &Containerd{conn: conn, cri: cri.NewImageServiceClient(conn), runtime: criRuntime{cri.NewRuntimeServiceClient(conn)}, images: imagesapi.NewImagesClient(conn)}, nil
}

// Close ends the connection.
func (c *Containerd) Close() error { return c.conn.Close() }

func inNamespace(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", "k8s.io")
}

// Pull has the CRI plugin pull and unpack name, and returns the image's ID (the digest of its config).
func (c *Containerd) Pull(ctx context.Context, name string) (string, error) {
	resp, err := c.cri.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: name}})
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", name, err)
	}
	return resp.GetImageRef(), nil
}

// Present says whether the kubelet would find name on this machine, and whether it is pinned.
func (c *Containerd) Present(ctx context.Context, name string) (present, pinned bool, err error) {
	resp, err := c.cri.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
	if err != nil {
		return false, false, fmt.Errorf("status of image %s: %w", name, err)
	}
	return resp.GetImage() != nil, resp.GetImage().GetPinned(), nil
}

// Records lists every name in the image store.
func (c *Containerd) Records(ctx context.Context) (map[string]Record, error) {
	resp, err := c.images.List(inNamespace(ctx), &imagesapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	records := map[string]Record{}
	for _, i := range resp.GetImages() {
		t := i.GetTarget()
		records[i.GetName()] = Record{
			Name:   i.GetName(),
			Target: Descriptor{MediaType: t.GetMediaType(), Digest: Digest(t.GetDigest()), Size: t.GetSize()},
			Labels: i.GetLabels(),
		}
	}
	return records, nil
}

// Put makes the record be: it creates the name, or changes its target and the labels that are given; an empty label is taken away.
func (c *Containerd) Put(ctx context.Context, r Record) error {
	ctx = inNamespace(ctx)
	img := &imagesapi.Image{
		Name:   r.Name,
		Labels: r.Labels,
		Target: &types.Descriptor{MediaType: r.Target.MediaType, Digest: string(r.Target.Digest), Size: r.Target.Size},
	}
	mask := []string{"target"}
	for _, label := range slices.Sorted(maps.Keys(r.Labels)) {
		mask = append(mask, "labels."+label)
	}
	update := &imagesapi.UpdateImageRequest{Image: img, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}}
	_, err := c.images.Update(ctx, update)
	if status.Code(err) == codes.NotFound {
		_, err = c.images.Create(ctx, &imagesapi.CreateImageRequest{Image: img})
		if status.Code(err) == codes.AlreadyExists { // somebody was faster
			_, err = c.images.Update(ctx, update)
		}
	}
	if err != nil {
		return fmt.Errorf("name image %s: %w", r.Name, err)
	}
	return nil
}

// away says whether err means that containerd is not there at the moment (restarting, or not yet started), which ends by itself.
func away(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Aborted, codes.Canceled:
		return true
	case codes.Unknown, codes.Unimplemented:
		// A containerd that goes down in the middle of a pull says so in many words, none of them a code.
		text := err.Error()
		return strings.Contains(text, "not initialized") || strings.Contains(text, "unknown service") ||
			strings.Contains(text, "closed network connection") || strings.Contains(text, "database not open") || strings.Contains(text, "context canceled")
	}
	return false
}
