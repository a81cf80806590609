// Calls functions of a library that fxprune built for this processor, without Python or TVM: driver LIBRARY INPUT OUTPUT.
// INPUT holds calls: a name of 64 bytes, the number of arguments, and of each its kind (0 = int32, 2 = float32; 16
// more: handed over as an address, not as a tensor), its cells and their bytes. OUTPUT gets every argument of every call as it is afterwards.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <vector>

#include <tvm/ffi/c_api.h>

static const int64_t GUARD = 64;  // cells around every argument that no kernel may write
static const int32_t MOST_ARGUMENTS = 64;

static void stop(const char *what, const char *detail) {
  fprintf(stderr, "%s: %s\n", what, detail);
  exit(1);
}

// The one function of apache-tvm-ffi that kernels call: how they say which argument is wrong.
extern "C" void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  std::string text;
  for (int32_t i = 0; i < count; ++i) text += parts[i];
  stop(kind, text.c_str());
}

struct Argument {
  std::vector<int32_t> cells;
  int64_t size;
  bool addressed;
  DLTensor tensor;

  void check(const char *name) const {
    for (int64_t i = 0; i < GUARD; ++i)
      if (cells[i] != -1 || cells[GUARD + size + i] != -1) stop(name, "written outside an argument");
  }
};

static bool read(FILE *file, void *target, size_t bytes) { return fread(target, 1, bytes, file) == bytes; }

static void read_argument(FILE *file, Argument *argument, const char *name) {
  int32_t head[2];
  if (!read(file, head, sizeof(head))) stop(name, "the input ends early");
  argument->size = head[1];
  argument->cells.assign(head[1] + 2 * GUARD, -1);
  if (!read(file, argument->cells.data() + GUARD, 4 * static_cast<size_t>(head[1]))) stop(name, "the input ends early");
  argument->addressed = head[0] & 16;
  DLDataType kind = {static_cast<uint8_t>(head[0] & 15), 32, 1};
  argument->tensor = {argument->cells.data() + GUARD, {kDLCPU, 0}, 1, kind, &argument->size, nullptr, 0};
}

static void call(void *library, const char *name, std::vector<Argument> *arguments) {
  std::string symbol = std::string("__tvm_ffi_") + name;
  auto function = reinterpret_cast<TVMFFISafeCallType>(dlsym(library, symbol.c_str()));
  if (!function) stop(name, "not in the library");
  std::vector<TVMFFIAny> values(arguments->size());
  for (size_t i = 0; i < values.size(); ++i) {
    Argument &argument = (*arguments)[i];
    values[i].type_index = argument.addressed ? kTVMFFIOpaquePtr : kTVMFFIDLTensorPtr;
    values[i].v_ptr = argument.addressed ? argument.tensor.data : &argument.tensor;
  }
  TVMFFIAny result = {};
  if (function(nullptr, values.data(), static_cast<int32_t>(values.size()), &result) != 0) stop(name, "failed");
  for (const Argument &argument : *arguments) argument.check(name);
}

int main(int, char **paths) {
  void *library = dlopen(paths[1], RTLD_NOW);
  if (!library) stop("dlopen", dlerror());
  auto connect = reinterpret_cast<TVMFFISafeCallType>(dlsym(library, "__tvm_ffi_fxprune_connect"));
  TVMFFIAny no_openmp[4] = {}, result = {};
  no_openmp[3].v_int64 = 2;
  connect(nullptr, no_openmp, 4, &result);
  FILE *input = fopen(paths[2], "rb"), *output = fopen(paths[3], "wb");
  if (!input || !output) stop("fopen", paths[2]);
  char name[65] = {};
  for (int32_t count; read(input, name, 64);) {
    if (!read(input, &count, sizeof(count)) || count > MOST_ARGUMENTS) stop(name, "no number of arguments");
    std::vector<Argument> arguments(count);
    for (Argument &argument : arguments) read_argument(input, &argument, name);
    call(library, name, &arguments);
    for (const Argument &argument : arguments) fwrite(argument.cells.data() + GUARD, 4, argument.size, output);
  }
  return fclose(output);
}
