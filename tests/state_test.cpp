// Saved state: its checksum, and the streams that it goes through.
#include <asymkv/state/byte_stream.hpp>
#include <asymkv/state/crc32c.hpp>

#include "support/guarded.hpp"
#include "support/support.hpp"

namespace {

using namespace asymkv;

/// Division by the polynomial, a bit at a time, not reflected: x^32 + x^28 + ... as the books write it.
std::uint32_t crc32c_of_bits(const unsigned char* data, std::size_t bytes) {
  std::uint32_t remainder = 0xffffffffu, reversed = 0;
  for (std::size_t i = 0; i < bytes; ++i)
    for (int bit = 0; bit < 8; ++bit) {  // the lowest bit of a byte comes first
      const bool divides = (remainder >> 31 != 0) != ((data[i] >> bit & 1) != 0);
      remainder <<= 1;
      if (divides) remainder ^= 0x1edc6f41u;
    }
  for (int bit = 0; bit < 32; ++bit)
    if ((remainder >> bit & 1u) != 0) reversed |= 0x80000000u >> bit;
  return ~reversed;
}

std::vector<unsigned char> random_bytes(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::vector<unsigned char> bytes(count);
  for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(generator() >> 24);
  return bytes;
}

TEST(Crc32c, GivesThePublishedValues) {
  EXPECT_EQ(crc32c("123456789", 9), 0xe3069283u);
  unsigned char bytes[4][32];  // RFC 3720, B.4
  for (int i = 0; i < 32; ++i) {
    bytes[0][i] = 0x00;
    bytes[1][i] = 0xff;
    bytes[2][i] = static_cast<unsigned char>(i);
    bytes[3][i] = static_cast<unsigned char>(31 - i);
  }
  const std::uint32_t expected[4] = {0x8a9136aau, 0x62a8ab43u, 0x46dd794eu, 0x113fdb5cu};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(crc32c(bytes[i], 32), expected[i]) << i;
    EXPECT_EQ(crc32c_of_bits(bytes[i], 32), expected[i]) << "the oracle, " << i;
  }
}

TEST(Crc32c, OfNothingIsWhatCameBefore) {
  EXPECT_EQ(crc32c(nullptr, 0), 0u);
  EXPECT_EQ(crc32c(nullptr, 0, 0xe3069283u), 0xe3069283u);
}

TEST(Crc32c, AgreesWithTheOracleAtAllAddressesAndLengths) {
  const std::vector<unsigned char> bytes = random_bytes(16 + 70, 1);
  for (std::size_t first = 0; first < 16; ++first)
    for (std::size_t count = 0; count <= 70; ++count)
      EXPECT_EQ(crc32c(bytes.data() + first, Index(count)), crc32c_of_bits(bytes.data() + first, count))
          << count << " bytes from " << first;
  const std::vector<unsigned char> many = random_bytes(100003, 2);
  EXPECT_EQ(crc32c(many.data(), Index(many.size())), crc32c_of_bits(many.data(), many.size()));
}

TEST(Crc32c, OfPartsIsThatOfTheWhole) {
  const std::vector<unsigned char> bytes = random_bytes(61, 3);
  const std::uint32_t whole = crc32c_of_bits(bytes.data(), bytes.size());
  for (Index first = 0; first <= 61; ++first)
    for (Index second = first; second <= 61; ++second) {
      std::uint32_t crc = crc32c(bytes.data(), first);
      crc = crc32c(bytes.data() + first, second - first, crc);
      EXPECT_EQ(crc32c(bytes.data() + second, 61 - second, crc), whole) << first << ", " << second;
    }
}

TEST(Crc32c, ReadsNothingBeyondTheEnd) {
  for (Index floats = 1; floats < 9; ++floats) {
    support::Guarded<float> at_end(1, floats, support::Edge::end);
    at_end.matrix().setConstant(1.5f);
    const std::vector<float> same(std::size_t(floats), 1.5f);
    for (Index skip = 0; skip < 4; ++skip)
      EXPECT_EQ(crc32c(reinterpret_cast<const char*>(at_end.matrix().data()) + skip, 4 * floats - skip),
                crc32c(reinterpret_cast<const char*>(same.data()) + skip, 4 * floats - skip));
  }
}

TEST(MemorySource, GivesAllBytesInOrderThenFails) {
  const std::vector<unsigned char> bytes = random_bytes(100, 5);
  MemorySource memory(bytes.data(), 100);
  const ByteSource source = memory.source();
  std::vector<unsigned char> read;
  for (Index count : {1, 30, 8, 61}) {
    unsigned char next[61];
    ASSERT_TRUE(source.read(source.context, next, count));
    read.insert(read.end(), next, next + count);
    EXPECT_EQ(memory.remaining(), 100 - Index(read.size()));
  }
  EXPECT_EQ(read, bytes);
  unsigned char none = 7;
  EXPECT_FALSE(source.read(source.context, &none, 1));
  EXPECT_EQ(none, 7);
}

TEST(MemorySource, AReadOfTooMuchReadsNothing) {
  const std::vector<unsigned char> bytes = random_bytes(10, 6);
  MemorySource memory(bytes.data(), 10);
  unsigned char to[11] = {};
  EXPECT_FALSE(memory.source().read(memory.source().context, to, 11));
  EXPECT_EQ(memory.remaining(), 10);
  EXPECT_EQ(std::count(to, to + 11, 0), 11);
  EXPECT_TRUE(memory.source().read(memory.source().context, to, 10));
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), to));
}

TEST(MemorySource, OfNoBytesIsAtItsEnd) {
  MemorySource memory(nullptr, 0);
  unsigned char byte = 7;
  EXPECT_FALSE(memory.source().read(memory.source().context, &byte, 1));
  EXPECT_EQ(memory.remaining(), 0);
}

TEST(CountingSink, CountsWhatIsWritten) {
  CountingSink counting;
  const ByteSink sink = counting.sink();
  EXPECT_EQ(counting.bytes(), 0);
  for (Index count : {3, 1, 500}) EXPECT_TRUE(sink.write(sink.context, std::vector<char>(500).data(), count));
  EXPECT_EQ(counting.bytes(), 504);
}

}  // namespace
