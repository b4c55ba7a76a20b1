// Asks the endpoint as Kibana's runtime does, with the connector's own config and secrets, read as JSON from stdin.
const https = require("https");
let text = "";
process.stdin.on("data", (part) => (text += part));
process.stdin.on("end", () => {
  const { config, secrets } = JSON.parse(text);
  const pem = (name) => (secrets[name] ? Buffer.from(secrets[name], "base64") : undefined);
  const agent = new https.Agent({ cert: pem("certificateData"), key: pem("privateKeyData"), ca: pem("caData") });
  const body = JSON.stringify({ model: config.defaultModel, messages: [{ role: "user", content: "Hello" }] });
  const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(body) };
  if (secrets.apiKey) headers.authorization = `Bearer ${secrets.apiKey}`;
  const request = https.request(config.apiUrl, { method: "POST", agent, headers }, (answer) => {
    answer.resume();
    answer.on("end", () => console.log(answer.statusCode));
  });
  request.on("error", (error) => console.log(error.code));
  request.end(body);
});
