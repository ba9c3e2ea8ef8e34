// How fast this machine reads memory: every thread adds up its own part of a large array.
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef struct { const float *from; size_t count; float sum; } part;

static void *add(void *argument) {
  part *p = argument;
  float sums[64] = {0};
  for (size_t i = 0; i + 64 <= p->count; i += 64)
    for (int j = 0; j < 64; j++) sums[j] += p->from[i + j];
  for (int j = 0; j < 64; j++) p->sum += sums[j];
  return NULL;
}

float *new_array(size_t count) {
  float *array = aligned_alloc(4096, count * sizeof(float));
  if (array) memset(array, 0, count * sizeof(float));
  return array;
}

float read_array(const float *array, size_t count, int threads) {
  pthread_t *ids = malloc(threads * sizeof(pthread_t));
  part *parts = calloc(threads, sizeof(part));
  float sum = 0;
  for (int t = 0; t < threads; t++) {
    parts[t].from = array + t * (count / threads);
    parts[t].count = count / threads;
    pthread_create(&ids[t], NULL, add, &parts[t]);
  }
  for (int t = 0; t < threads; t++) {
    pthread_join(ids[t], NULL);
    sum += parts[t].sum;
  }
  free(ids);
  free(parts);
  return sum;
}
