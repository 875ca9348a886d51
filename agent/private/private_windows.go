package private

import (
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// access is for the system and for administrators, for all that is in the folder too,
// and nothing is taken from the folder above.
const access = "O:BAD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"

// MkdirAll makes a folder, and those above it, that only administrators and the system
// can enter. One that was there is taken over, and closed to all
// others: anybody can make a folder in %ProgramData%.
func MkdirAll(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	sd, err := windows.SecurityDescriptorFromString(access)
	if err != nil {
		return fmt.Errorf("close %s to others: %w", dir, err)
	}
	owner, _, err := sd.Owner()
	if err == nil {
		var list *windows.ACL
		list, _, err = sd.DACL()
		what := windows.SECURITY_INFORMATION(windows.OWNER_SECURITY_INFORMATION | windows.DACL_SECURITY_INFORMATION | windows.PROTECTED_DACL_SECURITY_INFORMATION)
		if err == nil {
			err = windows.SetNamedSecurityInfo(dir, windows.SE_FILE_OBJECT, what, owner, nil, list, nil)
		}
	}
	if err != nil {
		return fmt.Errorf("close %s to others: %w", dir, err)
	}
	return nil
}
