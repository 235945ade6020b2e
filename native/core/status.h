// The result of anything that can fail in native code: a code and a message for the user. No exception leaves native
// code.
#pragma once
#include <memory>
#include <string>
#include <utility>

namespace meshwork {

enum class Code : int32_t {
  ok = 0,
  invalidProgram = 1,   // a program that does not decode: a bug in the compiler or hostile bytes
  invalidArgument = 2,  // a bad handle, range or size from the caller
  outOfMemory = 3,
  unsupported = 4,  // no kernel for this op, dtype or layout
  aborted = 5,      // the run was cancelled
  timeout = 6,      // a collective's deadline passed
  io = 7,           // the file system said no
  invalidFile = 8,  // a file that is not what it claims to be
  internal = 9,
  device = 10,  // a device failed, and is of no more use to this engine
};

// What an error is about, for programs; either may be empty.
struct Subject {
  std::string file;
  std::string tensor;
};

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  Status(Code code, std::string message, Subject subject)
      : code_(code), message_(std::move(message)), subject_(std::make_shared<Subject>(std::move(subject))) {}
  bool ok() const { return code_ == Code::ok; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  const Subject* subject() const { return subject_.get(); }  // may be null

 private:
  Code code_ = Code::ok;
  std::string message_;
  std::shared_ptr<const Subject> subject_;
};

}  // namespace meshwork
