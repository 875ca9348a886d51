package discovery

import "go.temporal.io/sdk/activity"

func activityNamed(name string) activity.RegisterOptions { return activity.RegisterOptions{Name: name} }
