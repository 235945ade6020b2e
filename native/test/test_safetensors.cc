// Safetensors headers: good ones, and every kind of bad one with what is said about it.
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <random>

#include "io/safetensors.h"
#include "test/harness.h"

namespace meshwork {
namespace {

struct Parsed {
  Status status;
  Safetensors index;
};

Parsed parse(const std::string& header, int64_t dataBytes) {
  Parsed parsed;
  parsed.status = parseSafetensorsHeader(header, 8 + static_cast<int64_t>(header.size()), dataBytes, &parsed.index);
  return parsed;
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

void refused(const std::string& header, int64_t dataBytes, const std::string& why) {
  const Parsed parsed = parse(header, dataBytes);
  CHECK(parsed.status.code() == Code::invalidFile);
  if (parsed.status.message().find(why) == std::string::npos) {
    test::fail(__FILE__, __LINE__, "'" + parsed.status.message() + "' does not say '" + why + "'");
  }
}

std::string temporary(const char* name) {
  return std::string("/tmp/meshwork-test-") + std::to_string(getpid()) + "-" + name;
}

std::string little64(uint64_t n) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(n >> (8 * i) & 0xff));
  return bytes;
}

Status openFile(const std::string& content, Safetensors* index) {
  const std::string path = temporary("file");
  std::ofstream(path, std::ios::binary).write(content.data(), static_cast<std::streamsize>(content.size()));
  const Status status = openSafetensors(path, true, index);
  std::remove(path.c_str());
  return status;
}

TEST(safetensors_good) {
  const Parsed parsed =
      parse("{\"__metadata__\":{\"format\":\"pt\"},\n " + tensor("b", "F32", "[2, 3]", "[4,28]") + ", " +
                tensor("a", "BF16", "[1,2]", "[0, 4]") + "," + tensor("empty", "I64", "[0,7]", "[28,28]") + "," +
                tensor("\\u00e9\\ud83d\\ude00\\n", "U8", "[]", "[28,29]") + "}   ",
            29);
  CHECK(parsed.status.ok());
  CHECK_EQ(parsed.index.tensors.size(), size_t{4});
  CHECK_EQ(std::string(parsed.index.nameOf(parsed.index.tensors[0])), std::string("b"));
  CHECK_EQ(std::string(parsed.index.nameOf(parsed.index.tensors[3])), std::string("\xc3\xa9\xf0\x9f\x98\x80\n"));
  CHECK_EQ(parsed.index.tensors[0].rank, 2);
  CHECK_EQ(parsed.index.tensors[0].end - parsed.index.tensors[0].begin, int64_t{24});
  CHECK_EQ(parsed.index.metadataEnds.size(), size_t{1});
  CHECK_EQ(parsed.index.metadataKey(0), "format");
  CHECK_EQ(parsed.index.metadataValue(0), "pt");
  CHECK(parse("{}", 0).status.ok());
}

TEST(safetensors_bad_json) {
  refused("", 0, "does not begin");
  refused("[]", 0, "does not begin");
  refused(" {}", 0, "does not begin");
  refused("{", 0, "expected '\"'");
  refused("{}x", 0, "something follows");
  refused("{} {}", 0, "something follows");
  refused("{\"a\"", 0, "expected ':'");
  refused("{\"a", 0, "does not end");
  refused("{\"a\\", 0, "does not end");
  refused("{\"a\\x\":{}}", 0, "unknown escape");
  refused("{\"a\\u12g4\":{}}", 0, "hexadecimal");
  refused("{\"\\ud800\":{}}", 0, "lone surrogate");
  refused("{\"\\ud800\\u0041\":{}}", 0, "lone surrogate");
  refused("{\"\\udc00\":{}}", 0, "lone surrogate");
  refused("{\"\\u0000\":{}}", 0, "zero character");
  refused("{\"a\nb\":{}}", 0, "control character");
  refused("{\"\xff\":{}}", 0, "not UTF-8");
  refused("{\"\xc0\x80\":{}}", 0, "not UTF-8");
  refused("{\"\xed\xa0\x80\":{}}", 0, "not UTF-8");
  refused("{\"\xf4\x90\x80\x80\":{}}", 0, "not UTF-8");
  refused("{\"a\":1}", 0, "expected '{'");
  refused("{" + tensor("a", "U8", "[1]", "[0,1]") + ",}", 1, "expected '\"'");
}

TEST(safetensors_bad_fields) {
  refused("{\"a\":{}}", 0, "expected '\"'");
  refused("{\"a\":{\"dtype\":\"U8\"}}", 0, "missing");
  refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1, "unknown field");
  refused("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "dtype twice");
  refused("{" + tensor("a", "F31", "[1]", "[0,4]") + "}", 4, "unknown dtype 'F31'");
  refused("{" + tensor("a", "U8", "[-1]", "[0,1]") + "}", 1, "not an unsigned integer");
  refused("{" + tensor("a", "U8", "[1.0]", "[0,1]") + "}", 1, "not an unsigned integer");
  refused("{" + tensor("a", "U8", "[1e0]", "[0,1]") + "}", 1, "not an unsigned integer");
  refused("{" + tensor("a", "U8", "[01]", "[0,1]") + "}", 1, "leading zero");
  refused("{" + tensor("a", "U8", "[\"1\"]", "[0,1]") + "}", 1, "not an unsigned integer");
  refused("{" + tensor("a", "U8", "[18446744073709551616]", "[0,1]") + "}", 1, "beyond 64 bits");
  refused("{" + tensor("a", "U8", "[18446744073709551615]", "[0,1]") + "}", 1, "beyond 2^53");
  refused("{" + tensor("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") + "}", 1, "more than 8 dims");
  refused("{" + tensor("a", "F32", "[4611686018427388,4611686018427388]", "[0,4]") + "}", 4, "overflows");
  refused("{" + tensor("", "U8", "[1]", "[0,1]") + "}", 1, "without a name");
  refused("{\"__metadata__\":{\"a\":1}}", 0, "expected '\"'");
  refused("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "second __metadata__");
  refused("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "__metadata__ twice");
}

TEST(safetensors_bad_ranges) {
  refused("{" + tensor("a", "U8", "[2]", "[0,3]") + "}", 3, "3 bytes of data for a shape of 2");
  refused("{" + tensor("a", "U8", "[1]", "[1,0]") + "}", 1, "data_offsets 1 to 0");
  refused("{" + tensor("a", "U8", "[2]", "[0,2]") + "}", 1, "of 1 bytes of data");
  refused("{" + tensor("a", "U8", "[1]", "[1,2]") + "}", 2, "behind a hole");
  refused("{" + tensor("a", "U8", "[2]", "[0,2]") + "," + tensor("b", "U8", "[2]", "[1,3]") + "}", 3, "inside another");
  refused("{" + tensor("a", "U8", "[2]", "[0,2]") + "," + tensor("b", "U8", "[2]", "[0,2]") + "}", 2, "inside another");
  refused("{" + tensor("a", "U8", "[2]", "[0,2]") + "}", 3, "1 bytes behind the last");
  refused("{}", 1, "1 bytes behind the last");
  refused("{" + tensor("a", "U8", "[1]", "[0,1]") + "," + tensor("a", "U8", "[1]", "[1,2]") + "}", 2, "'a' twice");
  refused("{" + tensor("a", "U8", "[1]", "[0,1]") + "," + tensor("\\u0061", "U8", "[1]", "[1,2]") + "}", 2,
          "'a' twice");
}

TEST(safetensors_files) {
  Safetensors index;
  const std::string header = "{" + tensor("a", "U8", "[3]", "[0,3]") + "}";
  CHECK(openFile(little64(header.size()) + header + "xyz", &index).ok());
  std::byte data[3];
  CHECK(index.file->read(index.tensors[0].begin, data, 3).ok());
  CHECK(data[0] == std::byte{'x'} && data[2] == std::byte{'z'});
  CHECK(index.file->read(index.tensors[0].begin, data, 4).code() == Code::invalidArgument);
  CHECK(index.file->read(-1, data, 1).code() == Code::invalidArgument);
  CHECK(openFile("short", &index).code() == Code::invalidFile);
  CHECK(openFile(little64(header.size() + 4) + header + "xyz", &index).code() == Code::invalidFile);
  CHECK(openFile(little64(~uint64_t{0}) + header, &index).code() == Code::invalidFile);
  CHECK(openFile(little64(0) + header, &index).code() == Code::invalidFile);
  CHECK(openSafetensors("/tmp/meshwork-no-such-file", true, &index).code() == Code::io);
  CHECK(openSafetensors("/tmp", true, &index).code() == Code::io);
  CHECK(openSafetensors("/dev/zero", true, &index).code() == Code::io);
  CHECK(openSafetensors(std::string("/tmp/a\0b", 8), true, &index).code() == Code::io);
  const std::string fifo = temporary("fifo");
  CHECK_EQ(mkfifo(fifo.c_str(), 0600), 0);
  CHECK(openSafetensors(fifo, true, &index).code() == Code::io);
  std::remove(fifo.c_str());
}

TEST(safetensors_symbolic_links) {
  const std::string target = temporary("target"), link = temporary("link");
  std::ofstream(target, std::ios::binary) << little64(2) << "{}";
  CHECK_EQ(symlink(target.c_str(), link.c_str()), 0);
  Safetensors index;
  CHECK(openSafetensors(link, true, &index).ok());
  CHECK(openSafetensors(link, false, &index).code() == Code::io);
  std::remove(link.c_str());
  std::remove(target.c_str());
}

// Any change of a byte either keeps a header that holds or is refused; it never crashes.
TEST(safetensors_mutations) {
  const std::string good = "{\"__metadata__\":{\"k\":\"v\"}," + tensor("a", "F32", "[2,3]", "[0,24]") + "," +
                           tensor("b\\u00e9", "BF16", "[4]", "[24,32]") + "}";
  std::mt19937 random(1);
  const std::string alphabet = "{}[]\",:\\u0123456789.eE-+aF \n\x01\xff\xc3";
  for (int i = 0; i < 20000; ++i) {
    std::string bad = good;
    const int changes = 1 + static_cast<int>(random() % 3);
    for (int c = 0; c < changes && !bad.empty(); ++c) {
      const size_t at = random() % bad.size();
      const uint32_t how = random() % 4;
      if (how == 0) bad.erase(at, 1 + random() % 4);
      if (how == 1) bad.insert(at, 1, alphabet[random() % alphabet.size()]);
      if (how == 2) bad[at] = alphabet[random() % alphabet.size()];
      if (how == 3) bad.resize(at + 1);
    }
    const Parsed parsed = parse(bad, 32);
    if (!parsed.status.ok()) continue;
    for (const TensorEntry& entry : parsed.index.tensors)
      CHECK(entry.begin <= entry.end && parsed.index.nameOf(entry).size() > 0);
  }
}

}  // namespace
}  // namespace meshwork
