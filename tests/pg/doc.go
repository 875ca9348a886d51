// Package pg protects disks under real load and looks at what comes of it: PostgreSQL
// under pgbench is recovered from recovery points, and the times for which file systems
// were frozen are measured, under pgbench and under fio.
package pg
