/* What the programs need of the kernel's types. Where the fields really are in the
 * running kernel is found out when the programs are loaded (CO-RE). */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#define KERNEL __attribute__((preserve_access_index))

struct bvec_iter {
	__u64 bi_sector;
	unsigned int bi_size;
} KERNEL;

struct bio {
	struct bio *bi_next;
	struct bvec_iter bi_iter;
} KERNEL;

struct gendisk {
	int major;
	int first_minor;
} KERNEL;

struct queue_limits {
	unsigned short max_discard_segments;
} KERNEL;

struct request_queue {
	struct gendisk *disk; /* since 5.15 */
	struct queue_limits limits;
} KERNEL;

enum mq_rq_state {
	MQ_RQ_IDLE,
	MQ_RQ_IN_FLIGHT,
	MQ_RQ_COMPLETE,
};

struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len;
	__u64 __sector;
	struct bio *bio;
	struct bio *biotail;
	__u64 start_time_ns;
	enum mq_rq_state state;
} KERNEL;

struct request___before_5_17 {
	struct gendisk *rq_disk;
} KERNEL;

/* Operations: those that write are odd, those of drivers (passthrough) come last. */
#define REQ_OP_MASK 0xff
#define REQ_OP_DISCARD 3
#define FIRST_DRIVER_OP 32
