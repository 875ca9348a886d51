package azure

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"strings"

	"drover/activities/target"
	"drover/workflows/api"
)

// Tags beside those of package target. They say what has to be known later.
const (
	tagStep       = "drover-step"   // what this is of the machine: vm, nic, disk-0...
	tagFilled     = "drover-filled" // an uploaded disk has all its content
	tagSizes      = "drover-sizes"  // to take in order
	tagDisks      = "drover-disks"
	tagGeneration = "drover-generation"
	tagSystem     = "drover-os"
	tagZone       = "drover-zone"
	tagSet        = "drover-availability-set"
	tagHealth     = "drover-health"
	tagCommitted  = "drover-committed"
	tagDisk       = "drover-disk" // id of the source's disk
	tagSize       = "drover-size" // bytes of it
)

// Bounds of Azure.
const (
	maxName     = 40 // of ours: with what is added, a virtual machine has at most 64
	maxTags     = 50
	maxTagName  = 512
	maxTagValue = 256
	ourTags     = 16 // kept free for ours
	badInTag    = `<>%&\?/`
)

var notInNames = regexp.MustCompile(`[^A-Za-z0-9-]+`)

// hash tells runs apart.
func hash(ref target.Ref) string {
	sum := sha256.Sum256([]byte(ref.Name + "\x00" + ref.Run))
	return hex.EncodeToString(sum[:5])
}

// name is what Azure calls the machine, and what the names of its parts begin with.
// It follows from the ref, so that everybody finds the same, and never is the name
// itself, which may hold anything.
func name(ref target.Ref) string {
	n := strings.Trim(notInNames.ReplaceAllString(ref.Name, "-"), "-")
	if len(n) > maxName {
		n = strings.TrimRight(n[:maxName], "-")
	}
	if n == "" {
		n = "machine"
	}
	return n + "-" + hash(ref)
}

func cardName(ref target.Ref) string             { return name(ref) + "-nic" }
func diskStep(number int) string                 { return fmt.Sprintf("disk-%d", number) }
func diskName(ref target.Ref, number int) string { return name(ref) + "-" + diskStep(number) }

// copyName is the page blob that a disk is imported from.
func copyName(ref target.Ref, number int) string {
	return hash(ref) + "/" + diskStep(number) + ".vhd"
}

// tags of a part of the machine.
func tags(from map[string]string, step string) map[string]*string {
	out := map[string]*string{}
	for k, v := range from {
		out[k] = &v
	}
	out[tagStep] = &step
	return out
}

func tag(of map[string]*string, key string) string {
	if v := of[key]; v != nil {
		return *v
	}
	return ""
}

// ours says whether what carries the tags was made for the ref.
func ours(of map[string]*string, ref target.Ref) bool {
	return tag(of, target.TagRun) == ref.Run && tag(of, target.TagName) == ref.Name
}

// notOurs is the refusal to touch what somebody else made.
func notOurs(what, name string) error {
	return &target.Fault{Code: api.CodeNotOurs, Text: fmt.Sprintf(
		"%s %s is there already and does not carry the tags of this run; rename or remove it", what, name)}
}

// checkTags refuses what Azure would.
func checkTags(of map[string]string) error {
	if len(of) > maxTags-ourTags {
		return invalid("%d tags, at most %d", len(of), maxTags-ourTags)
	}
	for k, v := range of {
		if k == "" || len(k) > maxTagName || len(v) > maxTagValue || strings.ContainsAny(k, badInTag) {
			return invalid("tag %q: want a name of up to %d characters without %s, and a value of up to %d", k, maxTagName, badInTag, maxTagValue)
		}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return &target.Fault{Code: api.CodeInvalid, Text: fmt.Sprintf(format, args...)}
}

func plain(of map[string]*string) map[string]string {
	out := map[string]string{}
	for k := range maps.Keys(of) {
		out[k] = tag(of, k)
	}
	return out
}
