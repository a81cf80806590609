// Runs TVM's parallel loops on the OpenMP threads that torch already has, so that one pool serves both.
// The addresses are filled in after the library is loaded: GOMP_parallel, omp_get_thread_num, omp_get_num_threads.
#include <atomic>

struct Environment { void *sync_handle; int num_task; };
typedef int (*Task)(int, Environment *, void *);
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);
typedef int (*Query)();
struct Job { Task task; void *closure; int tasks; std::atomic<int> failed; };

extern "C" {
void *fxprune_openmp[3] = {nullptr, nullptr, nullptr};
int fxprune_threads = 1;
int fxprune_parallel_launch(Task task, void *closure, int tasks);
}

static void run(void *argument) {
  Job *job = static_cast<Job *>(argument);
  Environment environment = {nullptr, job->tasks};
  int step = reinterpret_cast<Query>(fxprune_openmp[2])();
  for (int i = reinterpret_cast<Query>(fxprune_openmp[1])(); i < job->tasks; i += step)
    if (job->task(i, &environment, job->closure) != 0) job->failed = 1;
}

// Signature of TVMBackendParallelLaunch; tasks == 0 means one for every thread.
int fxprune_parallel_launch(Task task, void *closure, int tasks) {
  int threads = tasks > 0 ? tasks : fxprune_threads;
  Job job = {task, closure, threads, {0}};
  reinterpret_cast<Parallel>(fxprune_openmp[0])(run, &job, static_cast<unsigned>(threads), 0);
  return job.failed ? -1 : 0;
}
