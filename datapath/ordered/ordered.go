// Package ordered does work on several goroutines and hands the results on in the
// order in which the work came: what a stream of chunks needs to be compressed by
// all processors.
package ordered

import "sync"

// task is one item on its way.
type task[T any] struct {
	item T
	done chan error // of size 1: the work's outcome
}

// Queue does the work of a stream of items. Put, Drain and Close are called by one
// goroutine.
type Queue[T any] struct {
	work   func(T) error
	out    func(T, error) error
	todo   chan *task[T]
	order  chan *task[T]
	inside sync.WaitGroup // items that were put and are not out
	wg     sync.WaitGroup

	mu  sync.Mutex
	err error // the first
}

// New starts a queue of so many workers that holds at most depth items. work is
// called by several goroutines at once; out by one, for every item in order. After
// an error, of work or of out, no more work is done and out gets every later item
// with that error, to free what it holds.
func New[T any](workers, depth int, work func(T) error, out func(T, error) error) *Queue[T] {
	q := &Queue[T]{work: work, out: out, todo: make(chan *task[T], depth), order: make(chan *task[T], depth)}
	for range workers {
		q.wg.Go(q.worker)
	}
	q.wg.Go(q.collect)
	return q
}

func (q *Queue[T]) failed() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

func (q *Queue[T]) fail(err error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
	}
	return q.err
}

func (q *Queue[T]) worker() {
	for t := range q.todo {
		err := q.failed()
		if err == nil {
			err = q.work(t.item)
		}
		t.done <- err
	}
}

func (q *Queue[T]) collect() {
	for t := range q.order {
		err := <-t.done
		if err == nil {
			err = q.failed()
		} else {
			err = q.fail(err)
		}
		if err = q.out(t.item, err); err != nil {
			_ = q.fail(err)
		}
		q.inside.Done()
	}
}

// Put takes an item, waiting while the queue is full. The item is the queue's, also
// when an error, the queue's first, is given.
func (q *Queue[T]) Put(item T) error {
	t := &task[T]{item, make(chan error, 1)}
	q.inside.Add(1)
	q.order <- t
	q.todo <- t
	return q.failed()
}

// Drain waits until all items are out and gives the first error.
func (q *Queue[T]) Drain() error {
	q.inside.Wait()
	return q.failed()
}

// Close waits until all items are out and ends the queue's goroutines.
func (q *Queue[T]) Close() error {
	close(q.todo)
	close(q.order)
	q.wg.Wait()
	return q.failed()
}
