// amx.hpp: tile registers (AMX) with products of bfloat16, beside the vectors of avx512.hpp. Included inside namespace
// kernels::amx and a target region by targets.hpp alone; no include guard, no includes.
//
// Registers 0 to 3 hold sums, two blocks of up to 16 rows times two tiles of 16 lanes; 4 and 5 hold the rows of the
// blocks, 6 and 7 the tiles, at 32 depths. Depths are in pairs, the two of a pair side by side in a word:
//
//   rows  [16][16 pairs]         tile  [16 pairs][16 lanes]         sums  [16 rows][16 lanes], in float

constexpr Index kRegisterRows = 16, kRegisterDepth = 32, kRegisterBytes = 1024;

/// The upper halves of 32 floats, which are bfloat16.
inline void store_upper_halves(void* p, F32x16 a, F32x16 b) {
  alignas(64) static constexpr std::uint16_t odd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  _mm512_storeu_si512(
      p, _mm512_permutex2var_epi16(_mm512_castps_si512(a.v), _mm512_loadu_si512(odd), _mm512_castps_si512(b.v)));
}

/// Until release_tiles, blocks have `rows` rows in all, at most 32.
inline void configure_tiles(Index rows) {
  struct {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {};
  } config;
  static_assert(sizeof config == 64);
  const Index first = rows < kRegisterRows ? rows : kRegisterRows;
  const Index second = rows > kRegisterRows ? rows - kRegisterRows : kRegisterRows;
  for (int i : {0, 1, 4}) config.rows[i] = std::uint8_t(first);
  for (int i : {2, 3, 5}) config.rows[i] = std::uint8_t(second);
  for (int i : {6, 7}) config.rows[i] = 16;
  __asm__ volatile("" : : "r"(&config) : "memory");  // GCC 12 says that eight bytes are read
  _tile_loadconfig(&config);
}
inline void release_tiles() { _tile_release(); }

/// Tile registers of a matrix: the first, and the distance of the next.
struct Registers {
  const unsigned char* at;
  Index stride;
};

/// Compilers do not know which memory tile registers are loaded from and stored to.
__attribute__((always_inline)) inline void memory_barrier() { __asm__ volatile("" ::: "memory"); }

/// result[row][lane] += rows . tiles over `depth` depths, for one or two blocks of rows and tiles of lanes. rows: the
/// registers of one block, upper and lower terms in turn, then the other's; tiles: those of one tile of lanes.
template <int Blocks, int Tiles>
inline void multiply_registers(const Registers& rows, const Registers& tiles, Index depth, float* result,
                               Index result_stride) {
  const Index stride = Index(sizeof(float)) * result_stride;
  float* second = result + kRegisterRows * result_stride;
  memory_barrier();
  _tile_loadd(0, result, stride);
  if constexpr (Tiles == 2) _tile_loadd(1, result + 16, stride);
  if constexpr (Blocks == 2) _tile_loadd(2, second, stride);
  if constexpr (Blocks == 2 && Tiles == 2) _tile_loadd(3, second + 16, stride);
  for (Index i = 0; i < depth / kRegisterDepth; ++i) {
    const unsigned char* tile = tiles.at + i * kRegisterBytes;
    _tile_loadd(6, tile, 64);
    if constexpr (Tiles == 2) _tile_loadd(7, tile + tiles.stride, 64);
    for (Index term = 0; term < 2; ++term) {
      const unsigned char* row = rows.at + (2 * i + term) * kRegisterBytes;
      _tile_loadd(4, row, 64);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (Tiles == 2) _tile_dpbf16ps(1, 4, 7);
      if constexpr (Blocks == 2) _tile_loadd(5, row + rows.stride, 64);
      if constexpr (Blocks == 2) _tile_dpbf16ps(2, 5, 6);
      if constexpr (Blocks == 2 && Tiles == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, result, stride);
  if constexpr (Tiles == 2) _tile_stored(1, result + 16, stride);
  if constexpr (Blocks == 2) _tile_stored(2, second, stride);
  if constexpr (Blocks == 2 && Tiles == 2) _tile_stored(3, second + 16, stride);
  memory_barrier();
}
