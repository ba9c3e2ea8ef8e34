// How the kernels of a GPU are laid out, for them and for the host that starts them.
#pragma once

constexpr int divided(int x, int by) { return (x + by - 1) / by; }  // rounded up
constexpr int whole(int x, int of) { return divided(x, of) * of; }

// Forward: each column of a state belongs to PARTS neighbouring threads, and a block has some of the columns.
constexpr int PARTS = 4;
constexpr int forward_columns(int n) { return n < 32 ? whole(n, 8) : 32; }
constexpr int forward_threads(int n) { return PARTS * forward_columns(n); }
constexpr int forward_slices(int n) { return divided(n, forward_columns(n)); }

// One token: STEP_COLUMNS columns a block, whose keys are shared out among STEP_PARTS threads.
constexpr int STEP_COLUMNS = 16, STEP_PARTS = 16;
constexpr int step_threads(int) { return STEP_COLUMNS * STEP_PARTS; }
constexpr int step_slices(int n) { return divided(n, STEP_COLUMNS); }

// Gradient: a thread has ROWS rows of a state, and of each what falls to one of `gradient_lanes` threads.
constexpr int ROWS = 4, MOST_GRADIENT = 128;  // the largest head size
constexpr int gradient_lanes(int n) { return n <= 16 ? 4 : n <= 32 ? 8 : 16; }
constexpr int gradient_threads(int n) { return whole(gradient_lanes(n) * divided(n, ROWS), 32); }

// By chunks on tensor cores (wkv6_chunked.cu, wkv7_chunked.cu): a block has a head, and a warp 16 columns of its state.
constexpr int TILE = 16, MOST_CHUNKED = 64, CHUNKED_FROM = 80;  // the largest head size, the first architecture
constexpr bool is_chunked(int n, long long tokens, int arch) { return n % TILE == 0 && n <= MOST_CHUNKED && tokens >= TILE && arch >= CHUNKED_FROM; }
constexpr int chunked_threads(int n) { return 32 * (n / TILE); }

// RWKV-4: a thread a channel.
constexpr int STRIP_THREADS = 64;

// Products with a packed matrix: `rows` rows of x at once, a power of two.
constexpr int rows_at_once(int rows) { return rows <= 1 ? 1 : 2 * rows_at_once((rows + 1) / 2); }
constexpr int MOST_FEW = 8, MOST_MANY = 64;  // rows; in cuda.py too
constexpr int FACTOR_UNIT = 32;              // numbers of x that have a scale: UNIT in packed.h
constexpr int ROUNDED_UNIT = FACTOR_UNIT + 8;  // bytes of them in rounded rows, with a scale and a sum

// Few rows: a warp has FEW_OUTPUTS outputs; of each row of x `few_staged` numbers are in shared memory at a time.
constexpr int FEW_WARPS = 8, FEW_OUTPUTS = 2, FEW_THREADS = 32 * FEW_WARPS;
constexpr int few_staged(int rows, int bits) { return bits == 16 ? 8192 / rows : rows < 2 ? 8192 : 16384 / rows; }

// Many rows, on tensor cores: a block has TILE outputs, and its warps share out the numbers of a row.
constexpr int MANY_WARPS = 8, MANY_THREADS = 32 * MANY_WARPS;

// Rounding alone: 8 threads a unit.
constexpr int ROUND_LANES = 8, ROUND_THREADS = 256, ROUND_UNITS = ROUND_THREADS / ROUND_LANES;
