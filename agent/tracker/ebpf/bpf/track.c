//go:build ignore

/* Marks, for each disk that is followed, which blocks were given to the device and which
 * of them the device is done with. DESIGN.md says why no write is missed; the order of
 * the marks below is part of that. */

#include "kernel.h"
#include "track.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct disk {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct word));
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, MAX_DISKS);
	__type(key, __u64);
	__array(values, struct disk);
} disks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} ranges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, STATS);
	__type(key, __u32);
	__type(value, __u64);
} stats SEC(".maps");

static __always_inline void add(__u32 stat)
{
	__u64 *n = bpf_map_lookup_elem(&stats, &stat);
	if (n)
		__sync_fetch_and_add(n, 1);
}

/* count_* count what makes a gap of a disk. */
static __always_inline struct count *counters(__u64 dev)
{
	void *disk = bpf_map_lookup_elem(&disks, &dev);
	__u32 one = 1;
	return disk ? bpf_map_lookup_elem(disk, &one) : 0;
}

__noinline int count_passthrough(__u64 dev)
{
	struct count *c = counters(dev);
	if (c)
		__sync_fetch_and_add(&c->passthrough, 1);
	return 0;
}

__noinline int count_beyond(__u64 dev)
{
	struct count *c = counters(dev);
	if (c)
		__sync_fetch_and_add(&c->beyond, 1);
	return 0;
}

__noinline int count_chain(__u64 dev)
{
	struct count *c = counters(dev);
	if (c)
		__sync_fetch_and_add(&c->chains, 1);
	return 0;
}

static __always_inline void queue(__u64 dev, __u64 since, __u64 first, __u64 end, __u64 what)
{
	struct range *r = bpf_ringbuf_reserve(&ranges, sizeof(*r), 0);
	if (!r) {
		add(what == ISSUED ? STAT_RANGES_LOST : STAT_RANGES_DONE_LOST);
		return;
	}
	r->dev = dev;
	r->since = since;
	r->first = first;
	r->end = end;
	r->what = what;
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	add(STAT_RANGES);
}

/* sure says whether the request was seen to be issued. Where the kernel keeps no time of
 * a request, one that is old enough was. */
static __always_inline int sure(void *disk, struct head *head, __u64 started)
{
	__u32 one = 1;
	if (started)
		return started >= head->since;
	struct count *c = bpf_map_lookup_elem(disk, &one);
	return c && bpf_ktime_get_ns() >= c->sure;
}

#define READ(x) (*(volatile typeof(x) *)&(x))

/* mark marks the blocks from first up to, not including, end. All atomic operations
 * give the old value, also where nobody needs it: those that do not are no barriers on
 * arm64. */
__noinline int mark(__u64 dev, __u64 first, __u64 end, __u64 what, __u64 started)
{
	__u64 old = 0;
	__u32 i = 0;
	void *disk = bpf_map_lookup_elem(&disks, &dev);
	if (!disk)
		return 0;
	struct head *head = bpf_map_lookup_elem(disk, &i);
	if (!head)
		return 0;
	if (end > head->blocks) {
		if (what == ISSUED)
			count_beyond(dev);
		end = head->blocks;
	}
	if (first >= end)
		return 0;
	if (what == DONE && !sure(disk, head, started))
		what = SEEN;
	add(what == ISSUED ? STAT_ISSUED : what == DONE ? STAT_DONE : STAT_SEEN);
	if (end - first > MAX_WORDS * WORD_BLOCKS) {
		queue(dev, head->since, first, end, what);
		return 0;
	}
	__u64 last = (end - 1) / WORD_BLOCKS, base = head->base, turn = READ(head->turn) & 1;
	__u64 mask = ~0ULL << (first % WORD_BLOCKS), n = first / WORD_BLOCKS;
	for (int k = 0; k <= MAX_WORDS; k++) {
		if (n > last)
			break;
		if (n == last)
			mask &= ~0ULL >> (WORD_BLOCKS - 1 - (end - 1) % WORD_BLOCKS);
		i = base + n;
		struct word *w = bpf_map_lookup_elem(disk, &i);
		if (!w)
			return 0;
		if (what == ISSUED) {
			__u64 busy = __sync_fetch_and_or(&w->under_way, mask);
			busy |= READ(w->doubt[0]) | READ(w->doubt[1]);
			busy &= mask;
			if (busy) {
				old |= __sync_fetch_and_or(&w->doubt[turn], busy);
				add(STAT_DOUBTS);
			}
		}
		old |= __sync_fetch_and_or(&w->changed, mask);
		if (what == DONE)
			old |= __sync_fetch_and_and(&w->under_way, ~mask);
		i = HEADER + n / WORD_BLOCKS;
		struct word *top = bpf_map_lookup_elem(disk, &i);
		__u64 bit = 1ULL << (n % WORD_BLOCKS);
		if (top && !(READ(top->changed) & bit))
			old |= __sync_fetch_and_or(&top->changed, bit);
		n++;
		mask = ~0ULL;
	}
	return old != 0;
}

/* A discard may have many ranges, one in each bio. */
static __always_inline void mark_bios(struct request *rq, __u64 dev, __u64 what)
{
	struct bio *bio = rq->bio;
	__u64 started = rq->start_time_ns;
	for (int k = 0; k < MAX_BIOS; k++) {
		if (!bio)
			return;
		__u64 sector = bio->bi_iter.bi_sector, bytes = bio->bi_iter.bi_size;
		if (bytes)
			mark(dev, sector >> BLOCK_SHIFT, (sector + (bytes >> 9) + 7) >> BLOCK_SHIFT, what, started);
		bio = bio->bi_next;
	}
	if (bio && what == ISSUED)
		count_chain(dev);
}

/* request marks the first so many bytes of what is left of a request. */
static __always_inline void request(struct request *rq, __u64 what, __u64 bytes)
{
	__u32 op = rq->cmd_flags & REQ_OP_MASK;
	if (!(op & 1))
		return;
	struct request_queue *q = rq->q;
	struct gendisk *disk;
	int by_queue = bpf_core_field_exists(q->disk);
	if (by_queue)
		disk = q->disk;
	else
		disk = ((struct request___before_5_17 *)rq)->rq_disk;
	if (!disk) {
		if (op >= FIRST_DRIVER_OP && !by_queue && what == ISSUED)
			add(STAT_PASSTHROUGH_UNKNOWN);
		return;
	}
	__u64 dev = (__u64)(__u32)disk->major << 32 | (__u32)disk->first_minor;
	if (op >= FIRST_DRIVER_OP) {
		if (what == ISSUED)
			count_passthrough(dev);
		return;
	}
	__u64 sector = rq->__sector, all = rq->__data_len;
	if (!all || !bytes)
		return;
	if (what == DONE && rq->state == MQ_RQ_IDLE) /* it never reached the device */
		what = SEEN;
	if (op == REQ_OP_DISCARD && q->limits.max_discard_segments > 1) {
		mark_bios(rq, dev, what == DONE && bytes < all ? SEEN : what);
		return;
	}
	/* The block in which a part ends is done with the next part. */
	__u64 end = bytes < all ? (sector + (bytes >> 9)) >> BLOCK_SHIFT : (sector + (all >> 9) + 7) >> BLOCK_SHIFT;
	mark(dev, sector >> BLOCK_SHIFT, end, what, rq->start_time_ns);
}

SEC("tp_btf/block_rq_issue")
int BPF_PROG(issue, struct request *rq)
{
	request(rq, ISSUED, ~0ULL);
	return 0;
}

/* A request that failed may still be with the device. */
SEC("tp_btf/block_rq_complete")
int BPF_PROG(complete, struct request *rq, int error, unsigned int bytes)
{
	request(rq, error & 0xff ? SEEN : DONE, bytes);
	return 0;
}

/* The device has given it back; it will be issued again. */
SEC("tp_btf/block_rq_requeue")
int BPF_PROG(requeue, struct request *rq)
{
	request(rq, DONE, ~0ULL);
	return 0;
}
