// What TVM's compiled functions expect of TVM's runtime, which is not loaded: parallel loops and scratch memory.
// Parallel loops run on the OpenMP threads that torch already has, so that one pool serves both; in a process without
// OpenMP they start threads of their own. Functions can be bound to their arguments and run one after another by one
// call: Python costs a few microseconds for each, and as many again while its own code is not in the cache.
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <tvm/ffi/c_api.h>

struct Environment { void *sync_handle; int num_task; };
typedef int (*Task)(int, Environment *, void *);
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);
typedef int (*Query)();
struct Call { Call *next; TVMFFIAny function; int32_t count; TVMFFIAny *arguments; };
struct Job { Task task; void *closure; int tasks; int next; int failed; };

static const int MOST_THREADS = 256;
static Parallel parallel = nullptr;
static Query thread_number = nullptr;
static Query thread_count = nullptr;
static int default_threads = 1;

static void run(Job *job, int index) {
  Environment environment = {nullptr, job->tasks};
  if (job->task(index, &environment, job->closure) != 0) __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
}

static void run_share(void *argument) {
  Job *job = static_cast<Job *>(argument);
  for (int i = thread_number(), step = thread_count(); i < job->tasks; i += step) run(job, i);
}

static void *run_rest(void *argument) {
  Job *job = static_cast<Job *>(argument);
  for (int i; (i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->tasks;) run(job, i);
  return nullptr;
}

static void run_on_new_threads(Job *job) {
  pthread_t threads[MOST_THREADS];
  int started = 0;
  while (started < job->tasks - 1 && started < MOST_THREADS &&
         pthread_create(&threads[started], nullptr, run_rest, job) == 0) ++started;
  run_rest(job);
  while (started > 0) pthread_join(threads[--started], nullptr);
}

// Signature of TVMBackendParallelLaunch; tasks == 0 means one for every thread.
static int launch(Task task, void *closure, int tasks) {
  Job job = {task, closure, tasks > 0 ? tasks : default_threads, 0, 0};
  if (parallel) parallel(run_share, &job, static_cast<unsigned>(job.tasks), 0);
  else run_on_new_threads(&job);
  return job.failed ? -1 : 0;
}

// Signature of TVMBackendAllocWorkspace; a cache line and the widest vector are 64 bytes.
static void *allocate(int, int, uint64_t bytes, int, int) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

// Signature of TVMBackendFreeWorkspace.
static int release(int, int, void *memory) {
  free(memory);
  return 0;
}

extern "C" {
// Slots that TVM's object files define if they use them.
extern void *__TVMBackendParallelLaunch __attribute__((weak));
extern void *__TVMBackendAllocWorkspace __attribute__((weak));
extern void *__TVMBackendFreeWorkspace __attribute__((weak));

// fxprune_connect(GOMP_parallel, omp_get_thread_num, omp_get_num_threads, threads): addresses, 0 without OpenMP.
__attribute__((visibility("default"))) int __tvm_ffi_fxprune_connect(void *, const TVMFFIAny *args, int32_t,
                                                                     TVMFFIAny *) {
  parallel = reinterpret_cast<Parallel>(args[0].v_int64);
  thread_number = reinterpret_cast<Query>(args[1].v_int64);
  thread_count = reinterpret_cast<Query>(args[2].v_int64);
  default_threads = static_cast<int>(args[3].v_int64);
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = reinterpret_cast<void *>(launch);
  if (&__TVMBackendAllocWorkspace) __TVMBackendAllocWorkspace = reinterpret_cast<void *>(allocate);
  if (&__TVMBackendFreeWorkspace) __TVMBackendFreeWorkspace = reinterpret_cast<void *>(release);
  return 0;
}

// fxprune_bind(next, function, arguments...): a call, and the chain of calls that follow it, as an address. Objects are
// borrowed: the caller keeps them.
__attribute__((visibility("default"))) int __tvm_ffi_fxprune_bind(void *, const TVMFFIAny *args, int32_t count,
                                                                  TVMFFIAny *result) {
  Call *call = static_cast<Call *>(malloc(sizeof(Call) + count * sizeof(TVMFFIAny)));
  if (!call) return -1;
  *call = {reinterpret_cast<Call *>(args[0].v_int64), args[1], count - 2, reinterpret_cast<TVMFFIAny *>(call + 1)};
  memcpy(call->arguments, args + 2, call->count * sizeof(TVMFFIAny));
  result->type_index = kTVMFFIInt;
  result->zero_padding = 0;
  result->v_int64 = reinterpret_cast<int64_t>(call);
  return 0;
}

// fxprune_run(chain): runs the calls of a chain in order.
__attribute__((visibility("default"))) int __tvm_ffi_fxprune_run(void *, const TVMFFIAny *args, int32_t, TVMFFIAny *) {
  for (Call *call = reinterpret_cast<Call *>(args[0].v_int64); call; call = call->next) {
    TVMFFIAny result;
    memset(&result, 0, sizeof(result));
    void *function = call->function.v_ptr;
    int failed = TVMFFIFunctionGetCellPtr(function)->safe_call(function, call->arguments, call->count, &result);
    if (failed) return failed;
  }
  return 0;
}

// fxprune_free(chain): frees the calls of a chain.
__attribute__((visibility("default"))) int __tvm_ffi_fxprune_free(void *, const TVMFFIAny *args, int32_t, TVMFFIAny *) {
  for (Call *call = reinterpret_cast<Call *>(args[0].v_int64); call;) {
    Call *next = call->next;
    free(call);
    call = next;
  }
  return 0;
}
}
