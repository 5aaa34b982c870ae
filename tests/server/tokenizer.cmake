# Tokenizer and detokenizer. The oracle is SentencePiece itself: in the process for decoding, Debian's spm_encode and spm_decode
# (package sentencepiece) where they are installed.
find_program(FEWBIT_SPM_ENCODE spm_encode)
find_program(FEWBIT_SPM_DECODE spm_decode)

add_library(fewbit_tokenizer_testing STATIC sentence_piece_oracle.cc)
target_link_libraries(fewbit_tokenizer_testing PUBLIC fewbit_options PRIVATE fewbit_sentencepiece)

fewbit_test(utf8_test SOURCES utf8_test.cc LIBS fewbit_text LABELS server)
fewbit_test(tokenizer_test SOURCES tokenizer_test.cc LIBS fewbit_text fewbit_tokenizer_testing LABELS server)
fewbit_test(detokenizer_test SOURCES detokenizer_test.cc LIBS fewbit_text fewbit_tokenizer_testing LABELS server)
fewbit_test(tokenizer_beside_grpc_test SOURCES tokenizer_beside_grpc_test.cc LIBS fewbit_text gRPC::grpc++ LABELS server)
if(FEWBIT_SPM_ENCODE AND FEWBIT_SPM_DECODE)
  fewbit_test(tokenizer_oracle_test SOURCES tokenizer_oracle_test.cc LIBS fewbit_text LABELS server)
  target_compile_definitions(tokenizer_oracle_test PRIVATE
    SPM_ENCODE="${FEWBIT_SPM_ENCODE}" SPM_DECODE="${FEWBIT_SPM_DECODE}")
else()
  message(STATUS "tokenizer_oracle_test is left out: spm_encode and spm_decode (package sentencepiece) are not installed")
endif()

fewbit_test(client_test SOURCES client_test.cc LIBS fewbit_client absl::flags_reflection gRPC::grpc++ LABELS server)
