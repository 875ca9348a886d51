package api

// permanent lists the codes that trying again cannot mend: the request, the
// state or the data is wrong, or somebody has to decide. Everything else (a
// server away, vCenter or the target busy) is worth another try.
//
// This is the one place that decides; the retry policies of the workflows are
// made from it, and activities ask [Retryable].
var permanent = []string{
	CodeNotInState, CodeBusy, CodeInvalid, CodeNotFound,
	CodeSessionLost, CodeReplicaDamaged, CodeDiskChanged, CodeForcedShutdown, CodeDiskMissing, CodeDiskNew,
	CodeResyncFailed, CodeFenced, CodeDiffers, CodeMended, CodeNotCompared,
	CodeNoPoint, CodeNotIsolated, CodeSourceRunning, CodeApprovalTimedOut,
	CodeQuota, CodeTargetDenied, CodeAddressTaken, CodeNotOurs,
}

// transient lists the codes that are tried again.
var transient = []string{
	CodeNoAgent, CodeNoServer, CodeServerLost, CodeRPO, CodeGroupMissed, CodeTarget, CodeNoCapacity, CodeVCenter, CodeActionFailed, CodeInternal,
}

// PermanentCodes gives the codes that are never tried again.
func PermanentCodes() []string { return append([]string(nil), permanent...) }

// Codes gives all codes.
func Codes() []string { return append(PermanentCodes(), transient...) }

// Retryable reports whether an error with this code is worth another try. An
// unknown code is.
func Retryable(code string) bool {
	for _, c := range permanent {
		if c == code {
			return false
		}
	}
	return true
}

// MarksForResync reports whether a stream that ends with this code leaves a
// replica that only a resync mends.
func MarksForResync(code string) bool {
	switch code {
	case CodeSessionLost, CodeReplicaDamaged, CodeDiskChanged, CodeForcedShutdown, CodeDiffers:
		return true
	}
	return false
}
