# deploy/kubernetes: every overlay and the chart, rendered and checked without a cluster. A test whose tools are missing is skipped and
# says which (tests/apt-packages.txt has them).
find_program(FEWBIT_PYTHON python3 HINTS /usr/bin REQUIRED)  # the distribution's, which has the distribution's modules
set(kubernetes_tests)
foreach(part Overlays Broken Flags Guide Kubectl Openapi Chart)
  string(TOLOWER kubernetes.${part} name)
  add_test(NAME ${name} COMMAND ${FEWBIT_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/kubernetes/kubernetes_test.py ${part})
  list(APPEND kubernetes_tests ${name})
endforeach()
set_tests_properties(${kubernetes_tests} PROPERTIES LABELS deploy TIMEOUT 300 SKIP_RETURN_CODE 77
  ENVIRONMENT "PYTHONDONTWRITEBYTECODE=1;FEWBIT_BIN=${CMAKE_RUNTIME_OUTPUT_DIRECTORY};GOCACHE=${CMAKE_BINARY_DIR}/go-cache")
