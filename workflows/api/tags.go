package api

import (
	"strings"
	"unicode"
)

// Bounds of a VM's tags.
const (
	MaxVMTags  = 16
	maxTagText = 64 // characters of each half; the rest is cut off
)

// VMTag is a tag that somebody put on a VM in vCenter.
type VMTag struct {
	Category string `json:"category"`
	Name     string `json:"name"`
}

// NewVMTag makes one of vCenter's texts.
func NewVMTag(category, name string) VMTag { return VMTag{tagText(category), tagText(name)} }

// tagText is a text of bounded length that can be shown.
func tagText(text string) string {
	out := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
	if r := []rune(out); len(r) > maxTagText {
		return string(r[:maxTagText-1]) + "…"
	}
	return out
}

// String is "category/name".
func (t VMTag) String() string { return t.Category + "/" + t.Name }
