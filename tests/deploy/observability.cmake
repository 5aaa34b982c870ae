# deploy/observability: rules, dashboards, runbook. A test whose tools are missing is skipped and says which.
set(observability_tests)
foreach(part Rules Contents)
  string(TOLOWER observability.${part} name)
  add_test(NAME ${name} COMMAND ${FEWBIT_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/observability/observability_test.py ${part})
  list(APPEND observability_tests ${name})
endforeach()
set_tests_properties(${observability_tests} PROPERTIES LABELS deploy TIMEOUT 300 SKIP_RETURN_CODE 77
  ENVIRONMENT PYTHONDONTWRITEBYTECODE=1)
