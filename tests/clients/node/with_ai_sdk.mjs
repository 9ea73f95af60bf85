// Vercel's AI SDK: https://ai-sdk.dev/providers/openai-compatible-providers
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { KEY, MODEL, QUESTION, run } from "./cases.mjs";

const schema = z.object({ name: z.string(), ingredients: z.array(z.string()).max(2) });

function asked(url) {
  const provider = createOpenAICompatible({
    name: "shuntserve",
    baseURL: url,
    apiKey: KEY,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
  return { model: provider(MODEL), maxRetries: 0, prompt: QUESTION };
}

await run({
  async generateText(url) {
    const { text, usage } = await generateText(asked(url));
    assert(text);
    assert(usage.outputTokens > 0);
  },
  async streamText(url) {
    let text = "";
    const { textStream, finishReason } = streamText(asked(url));
    for await (const piece of textStream) text += piece;
    assert(text);
    assert.equal(await finishReason, "stop");
  },
  async generateObject(url) {
    schema.parse((await generateObject({ ...asked(url), schema })).object);
  },
  async outputObject(url) {
    const { output } = await generateText({ ...asked(url), output: Output.object({ schema }) });
    schema.parse(output);
  },
  async tools(url) {
    const cities = [];
    const { text } = await generateText({
      ...asked(url),
      stopWhen: stepCountIs(3),
      tools: {
        get_weather: tool({
          description: "The weather in a city",
          inputSchema: z.object({ city: z.string().max(8) }),
          execute: async ({ city }) => (cities.push(city), "sunny"),
        }),
      },
    });
    assert(text);
    assert.equal(cities.length, 1);
  },
});
