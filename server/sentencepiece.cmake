# fewbit_sentencepiece: SentencePiece as a static library without a protobuf of its own (sentencepiece.sh says why), and
# fewbit_text: UTF-8, tokenizer and detokenizer, the only code that sees it. Included by server/CMakeLists.txt.
set(FEWBIT_SENTENCEPIECE_DIR ${CMAKE_SOURCE_DIR}/build/deps/sentencepiece CACHE PATH
    "Where server/sentencepiece.sh put its include/ and lib/")

if(NOT EXISTS ${FEWBIT_SENTENCEPIECE_DIR}/lib/libsentencepiece.a)
  message(FATAL_ERROR
    "SentencePiece is not built yet (no ${FEWBIT_SENTENCEPIECE_DIR}/lib/libsentencepiece.a).\n"
    "Run:  server/sentencepiece.sh\n"
    "or set FEWBIT_SENTENCEPIECE_DIR to its --dest, or FEWBIT_SERVER=OFF to build without the server.")
endif()
find_package(Protobuf REQUIRED)

add_library(fewbit_sentencepiece STATIC IMPORTED GLOBAL)
set_target_properties(fewbit_sentencepiece PROPERTIES
  IMPORTED_LOCATION ${FEWBIT_SENTENCEPIECE_DIR}/lib/libsentencepiece.a
  INTERFACE_INCLUDE_DIRECTORIES ${FEWBIT_SENTENCEPIECE_DIR}/include)
target_link_libraries(fewbit_sentencepiece INTERFACE protobuf::libprotobuf Threads::Threads)

add_library(fewbit_text STATIC utf8.cc sentence_piece.cc tokenizer.cc detokenizer.cc)
target_link_libraries(fewbit_text
  PUBLIC fewbit_options absl::status absl::statusor absl::strings
  PRIVATE fewbit_sentencepiece nlohmann_json::nlohmann_json)
