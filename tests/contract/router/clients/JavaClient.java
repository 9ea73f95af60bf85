import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.Arrays;
import java.util.concurrent.CompletableFuture;
import java.util.stream.Collectors;

/**
 * A whole chat and a streamed one at each base URL, by the JDK's own client as it is by default: it
 * offers HTTP/2 with every request. Prints two lines a URL: the whole answer's JSON, and the
 * stream's lines joined by tabs.
 */
public final class JavaClient {
  private static final String ASKED =
      "{\"model\":\"tiny\",\"temperature\":0,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]";

  private static HttpRequest request(String url, String rest) {
    return HttpRequest.newBuilder(URI.create(url + "/v1/chat/completions"))
        .header("Content-Type", "application/json")
        .POST(HttpRequest.BodyPublishers.ofString(ASKED + rest))
        .build();
  }

  private static CompletableFuture<String> told(HttpClient client, String url) {
    var whole =
        client.sendAsync(request(url, "}"), BodyHandlers.ofString()).thenApply(a -> a.body());
    var streamed =
        client
            .sendAsync(request(url, ",\"stream\":true}"), BodyHandlers.ofLines())
            .thenApply(answer -> answer.body().collect(Collectors.joining("\t")));
    return whole.thenCombine(streamed, (first, second) -> first.strip() + "\n" + second);
  }

  public static void main(String[] urls) {
    var client = HttpClient.newHttpClient();
    var all = Arrays.stream(urls).map(url -> told(client, url)).toList();
    all.forEach(outcome -> System.out.println(outcome.exceptionally(e -> e + "\n").join()));
  }
}
