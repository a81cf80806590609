/* Stands for NVIDIA's driver: answers as told, remembers what it was asked. */
#include <stddef.h>
#include <string.h>

int stub_version = 13000, stub_load_result = 0, stub_launch_result = 0, stub_device_result = 0;
int stub_launches = 0, stub_current = 0;
unsigned stub_shape[7];
void *stub_stream, *stub_function, *stub_arguments[16];
char stub_image[4], stub_symbol[64];

int cuInit(unsigned flags) { return flags; }
int cuDriverGetVersion(int *version) { *version = stub_version; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return stub_device_result; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(size_t)(100 + device); return 0; }
int cuCtxSetCurrent(void *context) { stub_current = (int)(size_t)context; return 0; }
int cuModuleLoadData(void **module, const void *image) {
  memcpy(stub_image, image, sizeof stub_image);
  *module = (void *)0x123456789abcL;
  return stub_load_result;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  strncpy(stub_symbol, name, sizeof stub_symbol - 1);
  *function = (char *)module + 1;
  return strcmp(name, "missing") ? 0 : 500;
}
int cuGetErrorName(int error, const char **name) {
  *name = error == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_X";
  return 0;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
  unsigned shape[7] = {gx, gy, gz, bx, by, bz, shared};
  memcpy(stub_shape, shape, sizeof shape);
  stub_function = function;
  stub_stream = stream;
  for (int i = 0; i < 3; ++i) stub_arguments[i] = *(void **)arguments[i];
  ++stub_launches;
  return extra ? 1 : stub_launch_result;
}
