package release

import "errors"

// Each refusal is one of these, wrapped with what was found. None of them is worth a second try with the same bytes.
var (
	// ErrGrammar: a tag, tree, slice or bundle is not spelled as it must be.
	ErrGrammar = errors.New("not in the form that is allowed")
	// ErrUnsigned: the tag ends without a signature, or something follows it.
	ErrUnsigned = errors.New("not signed")
	// ErrSigner: the signature is wrong, or by nobody whom the trust names for this.
	ErrSigner = errors.New("not signed by anyone who may")
	// ErrThreshold: too few people signed.
	ErrThreshold = errors.New("signed by too few people")
	// ErrExpired: the key of the signer is not valid at the release's Time, or at a later time that was already seen.
	ErrExpired = errors.New("the signer's key is outside its dates")
	// ErrTrustStep: the way from the trust that is held to the trust of the release is broken.
	ErrTrustStep = errors.New("the change of who may sign is not proved")
	// ErrFleet: the release is of another fleet.
	ErrFleet = errors.New("a release of another fleet")
	// ErrOld: the release (or its trust) is older than what was accepted before.
	ErrOld = errors.New("older than what was accepted before")
	// ErrFork: another release has the number that was accepted before. This is an alarm: somebody signed two.
	ErrFork = errors.New("another release with the same number")
	// ErrTime: the release's Time is before that of the release accepted before.
	ErrTime = errors.New("the time of the release falls")
	// ErrAltered: bytes are not those that the release names.
	ErrAltered = errors.New("not the bytes that the release names")
	// ErrObjectMissing: something that the site needs is not in the slice.
	ErrObjectMissing = errors.New("an object is missing")
	// ErrObjectExtra: something that the site does not need is in the slice.
	ErrObjectExtra = errors.New("an object is too many")
	// ErrNotMine: the slice is of a site that neither lists this machine nor buries it.
	ErrNotMine = errors.New("the slice of another site")
	// ErrContent: the release is well signed, but its trust.yaml, machines.yaml or what leads to them cannot be read.
	ErrContent = errors.New("the release's own content is faulty")
	// ErrTruncated: the bytes end early.
	ErrTruncated = errors.New("cut short")
	// ErrOversized: a bound of Limits is passed.
	ErrOversized = errors.New("larger than allowed")
	// ErrName: a name in a tree is duplicate, out of order, or would lead out of its folder.
	ErrName = errors.New("a name that is not allowed")
	// ErrMode: a tree has a symlink, a submodule or another mode that is not allowed.
	ErrMode = errors.New("neither a plain file nor a folder")
	// ErrDictionary: the bytes were compressed against another dictionary.
	ErrDictionary = errors.New("compressed against something else")
)
