// What GCC's OpenMP runtime does between threads, told to ThreadSanitizer: the runtime is not built with it, so it
// would take a loop's end for no order at all. Preloaded by .ci/sanitize; each word calls the runtime's own.
#include <dlfcn.h>

extern "C" {
void __tsan_acquire(void*);
void __tsan_release(void*);
}

namespace {

char region, barrier, criticals, atomics;  // places that stand for an order

template <class Function>
Function* runtime(Function*, const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}
#define CALL(name, ...) \
  static auto* const real = runtime(&name, #name); \
  real(__VA_ARGS__)

struct Body {
  void (*run)(void*);
  void* data;
};

void run_body(void* given) {
  Body* const body = static_cast<Body*>(given);
  __tsan_acquire(&region);
  body->run(body->data);
  __tsan_release(&region);
}

}  // namespace

extern "C" {

void GOMP_parallel(void (*run)(void*), void* data, unsigned threads, unsigned flags) {
  Body body{run, data};
  __tsan_release(&region);
  CALL(GOMP_parallel, run_body, &body, threads, flags);
  __tsan_acquire(&region);
}

void GOMP_barrier() {
  __tsan_release(&barrier);
  CALL(GOMP_barrier);
  __tsan_acquire(&barrier);
}

void GOMP_loop_end() {
  __tsan_release(&barrier);
  CALL(GOMP_loop_end);
  __tsan_acquire(&barrier);
}

void GOMP_critical_name_start(void** name) {
  CALL(GOMP_critical_name_start, name);
  __tsan_acquire(&criticals);
}

void GOMP_critical_name_end(void** name) {
  __tsan_release(&criticals);
  CALL(GOMP_critical_name_end, name);
}

void GOMP_atomic_start() {
  CALL(GOMP_atomic_start);
  __tsan_acquire(&atomics);
}

void GOMP_atomic_end() {
  __tsan_release(&atomics);
  CALL(GOMP_atomic_end);
}
}
