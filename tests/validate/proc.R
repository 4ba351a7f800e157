# What R says about proc.csv, as JSON: Rscript proc.R proc.csv > proc.json
# Debian: r-cran-proc, r-cran-boot, r-cran-survey, r-cran-psych.
suppressPackageStartupMessages({
  library(pROC)
  library(boot)
  library(survey)
  library(psych)
})
data <- read.csv(commandArgs(trailingOnly = TRUE)[1])
a <- roc(data$truth, data$a, levels = c(0, 1), direction = "<", quiet = TRUE)
b <- roc(data$truth, data$b, levels = c(0, 1), direction = "<", quiet = TRUE)
test <- roc.test(a, b, method = "delong", paired = TRUE)

# Efron and Tibshirani 1993, table 14.1: the spatial test data, variance of A.
spatial <- c(48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41)
set.seed(1)
drawn <- boot(spatial, function(x, i) mean(x[i]^2) - mean(x[i])^2, R = 50000)
limits <- boot.ci(drawn, conf = 0.9, type = "bca", L = empinf(data = spatial, stype = "i", type = "jack",
  statistic = function(x, i) mean(x[i]^2) - mean(x[i])^2))$bca[4:5]

data$hit <- as.numeric((data$a > 0.5) == (data$truth == 1))
design <- svydesign(ids = ~patient, data = data, weights = ~1)
share <- svymean(~hit, design)

# Fleiss 1981, table 13.1: two raters, three diagnoses, 100 subjects.
table <- matrix(c(75, 1, 4, 5, 4, 1, 0, 0, 10), 3, 3, byrow = TRUE)
kappa <- suppressWarnings(cohen.kappa(table))

line <- function(name, values) {
  sprintf('  "%s": [%s]', name, paste(sprintf("%.12g", values), collapse = ", "))
}
text <- function(name, value) sprintf('  "%s": "%s"', name, value)
cat("{\n", paste(c(
  line("auc", c(auc(a), auc(b))),
  line("variance", c(var(a), var(b))),
  line("covariance", cov(a, b)),
  line("interval", ci.auc(a, method = "delong")[c(1, 3)]),
  line("p_value", test$p.value),
  line("bca", limits),
  line("share", c(coef(share), SE(share)^2)),
  line("kappa", c(kappa$kappa, kappa$var.kappa)),
  text("r", R.version.string),
  text("packages", paste(sapply(c("pROC", "boot", "survey", "psych"), function(name)
    paste(name, packageVersion(name))), collapse = ", "))
), collapse = ",\n"), "\n}\n", sep = "")
