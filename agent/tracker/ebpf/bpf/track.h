/* What the programs and the agent both know. memory.go and ranges.go say the same in Go. */
#pragma once

#include <linux/types.h>

#define BLOCK_SHIFT 3	  /* of sectors: 4 KiB */
#define WORD_BLOCKS 64
#define MAX_DISKS 128 /* twice the agent's own limit: new ones come before old ones go */
#define MAX_WORDS 128	  /* a request over more blocks than these have goes to the ring: 32 MiB */
#define MAX_BIOS 256	  /* the kernel's own limit for the ranges of one discard */
#define RING_BYTES 262144

/* A disk is an array of elements of 32 bytes: HEADER elements, then one bit for each
 * word, then the words. */
#define HEADER 4

/* 64 blocks, one bit each. */
struct word {
	__u64 changed;	 /* issued, or done, since the agent looked */
	__u64 under_way; /* issued and not known to be done */
	__u64 doubt[2];	 /* under_way may be wrong; by turns, see DESIGN.md */
};

/* Element 0. */
struct head {
	__u64 blocks;
	__u64 base;  /* of the words, in elements */
	__u64 turn;  /* which of doubt is set */
	__u64 since; /* CLOCK_MONOTONIC: requests from before this were not seen to be issued */
};

/* Element 1. */
struct count {
	__u64 sure;	   /* CLOCK_MONOTONIC: no request from before since is under way any more */
	__u64 passthrough; /* commands that write without saying where */
	__u64 beyond;	   /* writes behind the end */
	__u64 chains;	   /* discards of too many ranges */
};

/* What happened to a range. */
#define ISSUED 0 /* the device is about to get it */
#define DONE 1	 /* the device is done with it */
#define SEEN 2	 /* the device may be done with it */

/* A range that is too large to be marked bit by bit in the kernel. */
struct range {
	__u64 dev;
	__u64 since; /* of the disk's head */
	__u64 first;
	__u64 end;
	__u64 what;
};

/* Indexes of stats. */
#define STAT_ISSUED 0
#define STAT_DONE 1
#define STAT_SEEN 2
#define STAT_DOUBTS 3
#define STAT_RANGES 4
#define STAT_RANGES_LOST 5	/* of ISSUED: a gap */
#define STAT_RANGES_DONE_LOST 6 /* of others: harmless */
#define STAT_PASSTHROUGH_UNKNOWN 7
#define STATS 8
