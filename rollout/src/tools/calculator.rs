//! Arithmetic over `+ - * / ( )`, exact in integers and otherwise in f64.
use super::Tool;
use async_trait::async_trait;
use serde_json::Value;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Calculator;

/// Nested parentheses and signs, at most.
const DEPTH: u32 = 64;

#[async_trait]
impl Tool for Calculator {
    fn name(&self) -> &'static str {
        "calculator"
    }

    fn description(&self) -> &'static str {
        "Computes an arithmetic expression of numbers, + - * / and parentheses: {\"expression\": \"3 * (4 + 5)\"}."
    }

    async fn call(&self, arguments: &str) -> Result<String, String> {
        let json = serde_json::from_str::<Value>(arguments).ok();
        let expression = json.as_ref().and_then(|v| v.get("expression")).and_then(Value::as_str).unwrap_or(arguments);
        evaluate(expression).map(|value| value.to_string())
    }
}

fn evaluate(text: &str) -> Result<f64, String> {
    let mut parser = Parser { rest: text.trim_start() };
    let value = parser.sum(0)?;
    if !parser.rest.is_empty() {
        return Err(format!("cannot read {:?}", parser.rest));
    }
    if value.is_finite() { Ok(value) } else { Err("the result is not a number".into()) }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn take(&mut self, symbol: char) -> bool {
        let Some(rest) = self.rest.strip_prefix(symbol) else { return false };
        self.rest = rest.trim_start();
        true
    }

    fn sum(&mut self, depth: u32) -> Result<f64, String> {
        let mut value = self.product(depth)?;
        loop {
            if self.take('+') {
                value += self.product(depth)?;
            } else if self.take('-') {
                value -= self.product(depth)?;
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self, depth: u32) -> Result<f64, String> {
        let mut value = self.factor(depth)?;
        loop {
            if self.take('*') {
                value *= self.factor(depth)?;
            } else if self.take('/') {
                value /= self.factor(depth)?;
            } else {
                return Ok(value);
            }
        }
    }

    fn factor(&mut self, depth: u32) -> Result<f64, String> {
        if depth > DEPTH {
            return Err(format!("nested deeper than {DEPTH}"));
        }
        if self.take('-') {
            return Ok(-self.factor(depth + 1)?);
        }
        if self.take('(') {
            let value = self.sum(depth + 1)?;
            return if self.take(')') { Ok(value) } else { Err("a ) is missing".into()) };
        }
        let len = self.rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(len);
        let value = number.parse().map_err(|_| format!("a number was expected at {:?}", self.rest))?;
        self.rest = rest.trim_start();
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn computes_or_says_why_not() {
        for (text, want) in [("3 * (4 + 5)", "27"), ("{\"expression\": \"-2 - -3\"}", "1"), ("1/4+2*3", "6.25")] {
            assert_eq!(Calculator.call(text).await.unwrap(), want);
        }
        for text in ["", "1 +", "(1", "1/0", "2 3", "x", &"(".repeat(100_000), &"-".repeat(100_000)] {
            assert!(Calculator.call(text).await.is_err());
        }
    }
}
